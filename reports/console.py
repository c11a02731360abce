"""The end of the session in the terminal: a line a case with its four verdicts, the models, where the report is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acceptance.criteria.verdict import Measurement
from acceptance.judge import CRITERIA

WORDS = {"pass": "pass", "fail": "FAIL", "inconclusive": "INCONCLUSIVE", "not run": "not run"}


def summary(results: Mapping[str, Any], report: Path) -> str:
    """The verdict table as plain text.

    results  results.json
    report   path of conformance.html
    """
    rows = [("case", *CRITERIA)]
    rows += [(case["case"], *(cell(case["criteria"][name]) for name in CRITERIA)) for case in results["cases"]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(["", *lines, "", *statement(results), f"report: {report}"])


def cell(verdict: Mapping[str, Any]) -> str:
    """The outcome with the figure that decided it: `pass (4,021 >= 3,670 tokens/GPU/s)`."""
    word = WORDS[verdict["outcome"]]
    decisive = [m for m in verdict["measurements"] if m["comparator"] and m["value"] is not None]
    if not decisive or verdict["outcome"] == "not run":
        return word
    return f"{word} ({formula(decisive[0])})"


def formula(measurement: Mapping[str, Any]) -> str:
    return str(Measurement(**measurement)).removeprefix(f"{measurement['name']} ")


def statement(results: Mapping[str, Any]) -> list[str]:
    """What the session proves, in a sentence a model."""
    lines = []
    for model in results["models"]:
        if model["conformant"]:
            via = f"{model['model']}: passes all four criteria by {model['via']}"
            lines.append(via + ("" if model["certifiable"] else "; not certifiable"))
        elif model["judged"]:
            lines.append(f"{model['model']}: does not conform; no case passes all four criteria")
    departures = dict.fromkeys(d["text"] for case in results["cases"] for d in case["departures"])
    lines += [f"not certifiable: {text}" for text in departures]
    if any(model["model"].startswith("tiny") for model in results["models"]):
        lines.append("tiny is never certifiable: it proves the suite, not the machine")
    lines.append("CONFORMANT" if results["conformant"] else "not conformant")
    return lines
