"""results.json, read strictly: a report of a half-understood verdict is worse than none."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTCOMES = ("pass", "fail", "inconclusive", "not run")
CRITERIA = ("startup", "throughput", "determinism", "convergence")
SCHEMA = 1


class ReportError(Exception):
    """Results that cannot be reported: what, where, and what to do."""


@dataclass(frozen=True)
class OneOf:
    """Allowed values of a fixed key."""

    values: tuple[Any, ...]


NUMBER = (int, float, type(None))
MEASUREMENT = {
    "name": str,
    "value": NUMBER,
    "unit": str,
    "comparator": OneOf((">=", ">", "<=", "<", "==", None)),
    "limit": NUMBER,
    "source": str,
}
CRITERION = {"outcome": OneOf(OUTCOMES), "code": str, "reason": str, "measurements": [MEASUREMENT]}
RESULTS = {
    "schema": OneOf((SCHEMA,)),
    "suite": {"version": str, "commit": (str, type(None))},
    "system": dict,
    "conformant": bool,
    "models": [{"model": str, "certifiable": bool, "conformant": bool, "via": (str, type(None))}],
    "cases": [
        {
            "case": str,
            "model": str,
            "layout": dict,
            "gpus": (int, type(None)),
            "runs": dict,
            "criteria": dict.fromkeys(CRITERIA, CRITERION),
        }
    ],
}


def load(path: Path) -> tuple[dict[str, Any], str]:
    """The results in `path` and the file's sha256.

    Raises ReportError if the file is missing, is not JSON, lacks a fixed key, or contradicts itself.
    """
    try:
        data = path.read_bytes()
        results = json.loads(data)
    except FileNotFoundError:
        raise ReportError(f"{path}: not found; run `pytest acceptance` first, or name its --results folder") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read as JSON ({error}); judge the evidence again") from error
    _check(results, RESULTS, "results")
    for fault in _contradictions(results):
        raise ReportError(f"{path}: {fault}; judge the evidence again")
    return results, hashlib.sha256(data).hexdigest()


def _check(value: Any, shape: Any, where: str) -> None:
    """Hold `value` against a shape: a type, a tuple of types, OneOf, [shape of each], {key: shape}."""
    if isinstance(shape, OneOf):
        fits = any(value == allowed and type(value) is type(allowed) for allowed in shape.values)
        expected = " or ".join(json.dumps(allowed) for allowed in shape.values)
    else:
        kind = type(shape) if isinstance(shape, (list, dict)) else shape
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        expected = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    if not fits:
        raise ReportError(f"{where} is {str(value)[:80]!r} where {expected} belongs; judge the evidence again")
    if isinstance(shape, list):
        for position, item in enumerate(value):
            _check(item, shape[0], f"{where}[{position}]")
    elif isinstance(shape, dict):
        for key, inner in shape.items():
            if key not in value:
                raise ReportError(f"{where} lacks the key {key!r}; judge the evidence again")
            _check(value[key], inner, f"{where}.{key}")


def _contradictions(results: dict[str, Any]) -> list[str]:
    """Claims that the rest of the results does not carry: a report must not repeat them."""
    faults = []
    passed = {
        case["case"]
        for case in results["cases"]
        if all(case["criteria"][name]["outcome"] == "pass" for name in CRITERIA)
    }
    for model in results["models"]:
        if model["conformant"] and model["via"] not in passed:
            faults.append(
                f"model {model['model']!r} is said to conform by {model['via']!r}, which did not pass everything"
            )
    if results["conformant"] and not any(m["certifiable"] and m["conformant"] for m in results["models"]):
        faults.append("conformant is true, yet no certifiable model conforms")
    if len({case["case"] for case in results["cases"]}) != len(results["cases"]):
        faults.append("a case is listed twice")
    return faults
