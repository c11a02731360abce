"""What a case must reach: reads, merges and validates requirements (configs/, --requirements)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from acceptance.criteria.verdict import Requirement
from fixtures.cases import DATASETS, LAYOUT_NAME, Layout
from fixtures.internlm import flops
from fixtures.internlm.models import is_tiny, known
from fixtures.toml import load_toml

DEFAULTS = Path(__file__).parents[1] / "configs" / "requirements.toml"
TGS_UNIT = "tokens/GPU/s"
LOSS_UNIT = "nats per token"

Request = Mapping[str, Any]
Row = dict[str, Any]


class RequirementsError(Exception):
    """A requirements file or option that cannot be used: file, key, what belongs there. One sentence."""


@dataclass(frozen=True)
class Requirements:
    """Rows in order of precedence, and the numbers of --min-tgs and --max-loss that go before them all."""

    tgs: tuple[Row, ...]
    loss: tuple[Row, ...]
    long: tuple[Row, ...]
    min_tgs: float | None = None
    max_loss: float | None = None

    def minimum_tgs(self, request: Request, family: str) -> Requirement | None:
        """Minimum TGS of a case on a device family (profile name); None where no number is on record."""
        if self.min_tgs is not None:
            return Requirement(self.min_tgs, TGS_UNIT, "--min-tgs")
        found = self._figure(request, family)
        if found is None:
            return None
        figure, factor, source = found
        return Requirement(figure * factor, TGS_UNIT, f"{factor:g} x {source}" if factor != 1 else source)

    def expected_tgs(self, request: Request, family: str) -> float | None:
        """The figure that the minimum is a share of: to reckon hours with before anything is measured."""
        found = self._figure(request, family)
        return found[0] if found and not is_tiny(request["model"]) else None

    def maximum_loss(self, request: Request) -> Requirement | None:
        """Maximum final loss of a case, nats per token; None where no number is on record."""
        if self.max_loss is not None:
            return Requirement(self.max_loss, LOSS_UNIT, "--max-loss")
        name = request_model(request)
        row = next((row for row in self.loss if fnmatchcase(name, row["model"])), None)
        if row is None:
            return None
        if "maximum" in row:
            return Requirement(row["maximum"], LOSS_UNIT, row["source"])
        floor = flops.workload(request).entropy_floor
        return Requirement(row["entropy_floors"] * floor, LOSS_UNIT, row["source"]) if floor > 0 else None

    def long_run(self, model: str) -> tuple[int | None, float | None, str]:
        """(steps, hours, source) of a model's long run, which ends with whichever comes first.

        (None, None, "") where nothing is on record.
        """
        row: Row = next((row for row in self.long if fnmatchcase(model, row["model"])), {})
        return row.get("steps"), row.get("hours"), row.get("source", "")

    def _figure(self, request: Request, family: str) -> tuple[float, float, str] | None:
        """(TGS, factor, source) on record for a case; the family's own row goes before one for any."""
        world = request["world"]
        layout = {name: request["layout"][name] for name in ("tp", "pp", "zero", "fsdp", "mode", "wp")}
        for row in self.tgs:
            if (
                fnmatchcase(request_model(request), row["model"])
                and row["layout"] in ("any", Layout(**layout).name)
                and row.get("family", "any") in ("any", family)
                and (found := _by_devices(row["tgs"], world))
            ):
                figure, devices = found
                note = "" if devices in (None, world) else f" for {devices} devices, the nearest smaller on record"
                return figure, row.get("factor", 1.0), row["source"] + note
        return None


def request_model(request: Request) -> str:
    """The name that requirements go by: `7B`, or `7B-sft` for fine-tuning."""
    return request["model"] + (f"-{request['dataset']}" if request.get("dataset") else "")


def _by_devices(figures: Any, world: int) -> tuple[float, int | None] | None:
    if not isinstance(figures, Mapping):
        return figures, None
    counts = sorted(int(count) for count in figures)
    if world > counts[-1] or world < counts[0]:
        return None
    nearest = max(count for count in counts if count <= world)
    return figures[str(nearest)], nearest


def load(file: Path | None = None, min_tgs: float | None = None, max_loss: float | None = None) -> Requirements:
    """The requirements in force: options before the lab's file before the defaults.

    Raises RequirementsError.
    """
    for option, value in (("--min-tgs", min_tgs), ("--max-loss", max_loss)):
        if value is not None and not _positive(value):
            raise RequirementsError(f"{option} {value}: a finite number above 0 belongs here")
    tables: dict[str, list[Row]] = {"tgs": [], "loss": [], "long": []}
    for path in filter(None, (file, DEFAULTS)):
        for table, rows in _read(path).items():
            # In each file, a row for the family goes before one for any.
            tables[table] += sorted(rows, key=lambda row: row.get("family", "any") == "any")
    return Requirements(*(tuple(tables[name]) for name in ("tgs", "loss", "long")), min_tgs, max_loss)


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _model(value: Any) -> bool:
    names = [name + suffix for name in known() for suffix in ("", *(f"-{d}" for d in DATASETS))]
    return _text(value) and any(fnmatchcase(name, value) for name in names)


def _layout(value: Any) -> bool:
    return _text(value) and (value == "any" or LAYOUT_NAME.fullmatch(value) is not None)


def _figures(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return _positive(value)
    return bool(value) and all(c.isdigit() and int(c) > 0 and _positive(v) for c, v in value.items())


def _steps(value: Any) -> bool:
    return type(value) is int and value > 0


# key -> (check, what belongs there); those of REQUIRED must be there.
KEYS: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "tgs": {
        "model": (_model, "the name of a known model, in which * stands for anything,"),
        "layout": (_layout, 'a layout as in the case\'s name (tp1-pp1-zero8), or "any"'),
        "family": (_text, 'a profile of configs/devices, or "any"'),
        "tgs": (_figures, "a TGS above 0, or a table of them by number of devices"),
        "factor": (_positive, "a number above 0"),
        "unit": (lambda v: v == TGS_UNIT, f'"{TGS_UNIT}"'),
        "source": (_text, "where the number comes from"),
    },
    "loss": {
        "model": (_model, "the name of a known model, in which * stands for anything,"),
        "maximum": (_positive, "a loss above 0"),
        "entropy_floors": (_positive, "a number above 0"),
        "unit": (lambda v: v == LOSS_UNIT, f'"{LOSS_UNIT}"'),
        "source": (_text, "where the number comes from"),
    },
    "long": {
        "model": (_model, "the name of a known model, in which * stands for anything,"),
        "steps": (_steps, "a whole number of steps"),
        "hours": (_positive, "hours above 0"),
        "source": (_text, "where the number comes from"),
    },
}
REQUIRED = {
    "tgs": ("model", "layout", "tgs", "unit", "source"),
    "loss": ("model", "unit", "source"),
    "long": ("model", "source"),
}
ONE_OF = {"tgs": ("tgs",), "loss": ("maximum", "entropy_floors"), "long": ("steps", "hours")}


def _read(path: Path) -> dict[str, list[Row]]:
    try:
        tables = load_toml(path)
    except ValueError as error:
        raise RequirementsError(str(error)) from error
    for name, rows in tables.items():
        if name not in KEYS or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RequirementsError(f"{path}: [{name}] is not known; the tables are [[tgs]], [[loss]] and [[long]]")
        for number, row in enumerate(rows, 1):
            _check(f"{path}: [[{name}]] number {number} ({row.get('model', 'no model')})", name, row)
    return tables


def _check(where: str, table: str, row: Row) -> None:
    for key, value in row.items():
        if key not in KEYS[table]:
            raise RequirementsError(f"{where}: unknown key {key}; known are {', '.join(KEYS[table])}")
        check, form = KEYS[table][key]
        if not check(value):
            raise RequirementsError(f"{where}: {key} = {value!r}; {form} belongs here")
    if missing := [key for key in REQUIRED[table] if key not in row]:
        raise RequirementsError(f"{where}: {missing[0]} is missing: {KEYS[table][missing[0]][1]} belongs here")
    if not any(key in row for key in ONE_OF[table]):
        raise RequirementsError(f"{where}: {' or '.join(ONE_OF[table])} is missing")
    if table == "loss" and all(key in row for key in ONE_OF[table]):
        raise RequirementsError(f"{where}: maximum and entropy_floors exclude each other")
