"""The end of a nightly session: tonight against the baseline, as a terminal table and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from acceptance.criteria.regression import Comparison
from fixtures.plan import columns
from reports.history.session import Compared
from reports.text import clean, number

HEADER = ("case", "figure", "tonight", "baseline", "change (95 % interval)", "verdict")
ORDER = ("regressed", "improved", "too few nights", "unchanged")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|])")


def rows(compared: Sequence[Compared]) -> list[tuple[str, ...]]:
    """A line a case, the worst first: TGS, and every other figure that changed."""
    found = []
    for one in sorted(compared, key=lambda c: (ORDER.index(c.worst.outcome), c.line.case)):
        shown = [c for i, c in enumerate(one.found) if i == 0 or c.outcome in ("regressed", "improved")]
        found += [(one.line.case, *_cells(c)) for c in shown]
    return found


def table(compared: Sequence[Compared], events: Sequence[str] = ()) -> str:
    """The terminal's table, the reasons of what changed, and what the nights themselves tell."""
    if not compared:
        nothing = "history: no run ended in this session, so no night was written (--rerun makes new runs)"
        return "\n".join([nothing, *events])
    reasons = [f"{one.line.case}: {c.text}" for one in compared for c in one.found if _worth(one, c)]
    return "\n".join(["", *columns([HEADER, *rows(compared)]), *reasons, *events])


def markdown(compared: Sequence[Compared], events: Sequence[str] = (), report: Path | None = None) -> str:
    """The same for a chat or a CI job's page."""
    worst = min((c.worst.outcome for c in compared), key=ORDER.index, default="too few nights")
    lines = [f"### InternLM acceptance, tonight: {worst}", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|---|---|--:|--:|--:|---|"]
    lines += ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows(compared)]
    told = [f"{one.line.case}: {c.text}" for one in compared for c in one.found if _worth(one, c)]
    lines += ["", *(f"- {_escaped(text)}" for text in (*told, *events))]
    if report:
        lines += ["", f"Report: `{report}`"]
    return "\n".join(lines).rstrip() + "\n"


def _worth(one: Compared, comparison: Comparison) -> bool:
    """Whether a comparison's sentence is worth a line: what changed, and why a case could not be compared."""
    return comparison.outcome in ("regressed", "improved") or (
        comparison is one.worst and comparison.outcome == "too few nights"
    )


def _cells(c: Comparison) -> tuple[str, ...]:
    change = "–" if c.change is None else f"{c.change:+.1%} ({c.low:+.1%} to {c.high:+.1%})"
    since = f" since {c.since.label[:10]}" if c.since else ""
    return (
        c.title,
        f"{number(c.tonight, 4)} {c.unit}".strip() if c.tonight is not None else "–",
        number(c.baseline, 4) if c.baseline is not None else "–",
        change,
        c.outcome + since,
    )


def _escaped(text: str) -> str:
    """Text that Markdown shows as it stands; what came from a machine stays on one line."""
    return _MARKDOWN.sub(r"\\\1", " ".join(clean(text, 500).split()))
