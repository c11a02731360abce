"""What damage does to the reader: nothing but its own error, in time that grows with the length alone.

    python -m benchmarks.fuzz [--minutes 10] [--seed 0]

Reads random files until the time is over: metric lines of every version, wrapped, doubled and mixed with others,
and pieces of real logs, both with up to 30 edits; hostile units repeated to 100 kB and again to 400 kB; plain noise.
Prints how many were read, how many refused, the most time a byte (of 20 kB and more), and the most that it grew by
where a file is four times as long. Exits 1 above 10 us a byte or three times; another error than LogError ends it
with its traceback, and the same seed finds it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from fixtures.internlm.log import LogError, read
from tests.criteria import honest
from tests.internlm.lines import DIALECTS, NOISE, TOKENS, damage, lines, mailed, text, wrapped

LOGS = Path(__file__).parents[1] / "tests" / "data" / "logs"
SHORT, LONG = 100_000, 400_000  # bytes
SLOWEST, GROWTH = 10.0, 3.0  # microseconds a byte; times that, when four times as long


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random files (default: %(default)s)")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    real = [path.read_bytes() for path in sorted(LOGS.glob("*.log"))]
    outcomes: Counter[str] = Counter()
    slowest = growth = 0.0
    end = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fuzz.log"
        while time.monotonic() < end:
            contents = files(chance, real)
            rates = []
            for content in contents:
                path.write_bytes(content)
                outcome, seconds = outcome_of(path)
                outcomes[outcome] += 1
                rates.append(seconds / max(len(content), 1) * 1e6)
                if len(content) >= 20_000:
                    slowest = max(slowest, rates[-1])
            if len(contents) == 2:
                growth = max(growth, rates[1] / rates[0])
    print(f"{outcomes.total():,} files: " + ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(outcomes.items())))
    print(f"at most {slowest:.2f} us a byte, {growth:.2f} times that where four times as long")
    return 0 if slowest <= SLOWEST and growth <= GROWTH else 1


def outcome_of(path: Path) -> tuple[str, float]:
    """What became of the file, and the CPU seconds it took; any other error ends the run."""
    begin = time.process_time()
    try:
        found = "read with steps" if len(read([path]).steps) else "read without steps"
    except LogError:
        found = "refused"
    return found, time.process_time() - begin


def files(chance: random.Random, real: list[bytes]) -> list[bytes]:
    """One random file; a hostile one also four times as long."""
    kind = chance.randrange(6)
    if kind == 0:
        return [chance.randbytes(chance.choice([100, 5_000, 100_000]))]
    if kind == 1:
        unit = b"".join(chance.choices(TOKENS, k=chance.randint(1, 8)))
        line = text(lines(run(chance, 1), chance.choice(DIALECTS)))
        at = chance.randrange(len(line))
        unit = chance.choice([unit, line[:at] + unit, unit + line[at:]])
        return [unit * (size // len(unit) + 1) for size in (SHORT, LONG)]
    if kind == 2:
        log = chance.choice(real)
        at = chance.randrange(len(log))
        content = bytearray(log[at : at + chance.choice([3_000, 30_000, 200_000])])
    else:
        content = bytearray(metric_lines(chance))
    for _ in range(chance.choice([0, 1, 1, 2, 5, 30])):
        damage(chance, content)
    return [bytes(content)]


def metric_lines(chance: random.Random) -> bytes:
    """A run in one of the formats, whole or wrapped, some lines twice, others in between."""
    rows: list[str] = []
    for line in lines(run(chance, chance.choice([2, 6, 20, 200])), chance.choice(DIALECTS)):
        for copy in [line] * chance.choice([1, 1, 1, 2]):
            width = chance.randint(40, 900)
            rows += chance.choice([[copy], [copy], wrapped(copy, width), mailed(copy, width)])
            rows += chance.sample(NOISE, chance.choice([0, 0, 0, 1]))
    return text(rows, chance.choice(["\n", "\r\n"]))


def run(chance: random.Random, n: int) -> honest.Steps:
    rng = np.random.default_rng(chance.randrange(100))
    loss = honest.losses(rng, n)
    return honest.steps(rng, loss, honest.grad_norms(rng, loss))


if __name__ == "__main__":
    sys.exit(main())
