"""A reference: the loss curve that a run is compared with, in our own format or in the lab's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

SCHEMA = 1
# Losses depend on all of these: a curve recorded under other ones says nothing about this run. tp, pp and wp are among
# them since each part of a split model draws its own random weights (7B by tp2 and tp1 on H100s: 11 % apart).
KEY = ("model", "generation", "tp", "pp", "dp", "wp", "micro_bsz", "micro_num", "schedule", "seed")


class CurveError(ValueError):
    """A reference that cannot be used: what is wrong with it."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Losses from step 0 on, nats per token, shape (n,), and where they come from.

    family  the device family that recorded them (a profile's name); "" where it is not on record
    key     what the losses depend on (KEY); empty in the lab's format
    """

    losses: npt.NDArray[np.float64]
    source: str
    family: str = ""
    key: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def parse(value: Any, source: str) -> Reference:
    """A reference from parsed JSON: ours (`schema`, `losses`, `key`, `provenance`) or the lab's (`step0`, ...).

    Raises CurveError.
    """
    if not isinstance(value, Mapping):
        raise CurveError(f"{source}: a JSON object belongs here, not {type(value).__name__}")
    if "schema" not in value and any(str(key).startswith("step") for key in value):
        return Reference(_losses(_lab_order(value, source), source), source)
    if value.get("schema") != SCHEMA or not isinstance(value.get("losses"), list):
        raise CurveError(
            f"{source}: neither a reference of schema {SCHEMA} with `losses` nor an object with `step0`, `step1`, ..."
        )
    key, provenance = value.get("key"), value.get("provenance")
    if not isinstance(key, Mapping) or set(key) != set(KEY):
        raise CurveError(f"{source}: `key` must hold exactly {', '.join(KEY)}")
    if not isinstance(provenance, Mapping) or not isinstance(provenance.get("family"), str):
        raise CurveError(f"{source}: `provenance` must name the device `family`")
    losses = _losses(value["losses"], source)
    return Reference(losses, source, provenance["family"], MappingProxyType(dict(key)))


def as_json(losses: Sequence[float], key: Mapping[str, Any], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A reference in our own format; `parse` reads it back."""
    return {"schema": SCHEMA, "key": dict(key), "provenance": dict(provenance), "losses": list(losses)}


def _lab_order(value: Mapping[str, Any], source: str) -> list[Any]:
    wrong = [key for key in value if not re.fullmatch(r"step(0|[1-9]\d{0,8})", key)]
    if wrong:
        raise CurveError(f"{source}: {wrong[0]!r} where only `step0`, `step1`, ... belong")
    missing = [i for i in range(len(value)) if f"step{i}" not in value]
    if missing:
        raise CurveError(f"{source}: `step{missing[0]}` is missing")
    return [value[f"step{i}"] for i in range(len(value))]


def _losses(values: Sequence[Any], source: str) -> npt.NDArray[np.float64]:
    for i, loss in enumerate(values):
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not 0 < loss < math.inf:
            raise CurveError(f"{source}: the loss of step {i} is {loss!r}; a number above 0 belongs here")
    if not values:
        raise CurveError(f"{source}: holds no losses")
    losses = np.array(values, np.float64)
    losses.setflags(write=False)
    return losses
