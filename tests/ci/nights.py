"""Nights made from one recorded night: the same evidence, moved in time, with planted changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from fixtures.evidence import RUNS, read_json, write_json

RECORDED = Path(__file__).parents[1] / "data" / "night"  # short runs of tiny, trained on two CPU processes
CASE = "tiny-tp1-pp1-zerodp"
STAMP = re.compile(r"(?m)^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})")
RATES = re.compile(r"(tflops=|tgs \(tokens/gpu/second\)=|real_tgs=|tgs/\w+=)([\d.]+)")
LOSS = re.compile(r"(step=(\d+) loss=)([\d.]+)")


def make(
    recorded: Path,
    results: Path,
    started: datetime,
    *,
    speed: float = 1.0,
    driver: str | None = None,
    loss_from: int | None = None,
    change: Callable[[dict], None] = lambda request: None,
) -> Path:
    """Evidence of a night that began at `started`, under `results`, from the evidence under `recorded`.

    speed       factor on TGS; the log's clock runs as much faster
    driver      version that the node reports
    loss_from   step from which the losses are others
    change      changes request.json in place
    """
    shutil.copytree(recorded / "runs", results / "runs", ignore=shutil.ignore_patterns("scratch", "config.py"))
    session = started.isoformat()
    for path in sorted(results.glob("runs/*/*/attempt-*"), key=lambda path: RUNS.index(path.parent.name)):
        request = read_json(path / "request.json")
        began = datetime.fromisoformat(request["started"])
        request |= {"started": started.isoformat(timespec="milliseconds"), "session": session}
        change(request)
        write_json(path / "request.json", request)
        end = read_json(path / "end.json")
        end["seconds"] /= speed
        end["seconds_to_first_step"] /= speed
        end["ended"] = (started + timedelta(seconds=end["seconds"])).isoformat(timespec="milliseconds")
        write_json(path / "end.json", end)
        for node in path.glob("nodes/*.json"):
            write_json(node, {**json.loads(node.read_text()), "driver": driver})
        for log in (file for file in path.glob("logs/**/*") if file.is_file()):
            log.write_text(_moved(log.read_text(), began, started, speed, loss_from))
        started += timedelta(seconds=end["seconds"] + 1)
    return results


def _moved(text: str, began: datetime, started: datetime, speed: float, loss_from: int | None) -> str:
    base = began.replace(tzinfo=None)  # the log's times are naive local ones

    def stamp(match: re.Match[str]) -> str:
        moment = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S,%f")
        moment = started.replace(tzinfo=None) + (moment - base) / speed
        return f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d}"

    text = STAMP.sub(stamp, text)
    text = RATES.sub(lambda m: f"{m[1]}{float(m[2]) * speed}", text)
    if loss_from is not None:
        text = LOSS.sub(lambda m: m[0] if int(m[2]) < loss_from else f"{m[1]}{float(m[3]) * 1.000001}", text)
    return text
