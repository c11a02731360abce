"""How long collecting takes, against bare pytest in an empty folder: `python -m benchmarks.collect [--pairs N]`.

Promised: at most 2.5 times, and neither torch nor internlm imported by it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 2.5
OFF = ("-p", "no:hypothesispytest")  # a vendor does not have the developers' plugins, which would hide our share
HEAVY = ("torch", "internlm")
SCRIPT = f"""
import sys, pytest
status = pytest.main(sys.argv[1:])
print("imported:", [name for name in {HEAVY!r} if name in sys.modules])
sys.exit(status)
"""


def main() -> int:
    """Print both medians and their ratio; the exit status is 1 where the promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as empty:
        # 5: pytest's status for no tests
        bare = [sys.executable, "-m", "pytest", *OFF, "--collect-only", "-q", "--rootdir", empty, empty]
        ours = [sys.executable, "-m", "pytest", *OFF, "acceptance", "--collect-only", "-q"]
        times = [(seconds(bare, empty, 5), seconds(ours, ROOT, 0)) for _ in range(pairs + 1)][1:]  # the first warms up
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "acceptance", "--collect-only", "-q"], cwd=ROOT, capture_output=True, text=True
    )
    clean = "imported: []" in done.stdout
    ratio = statistics.median(ours / bare for bare, ours in times)
    print(f"bare pytest, empty folder    {statistics.median(bare for bare, _ in times):.2f} s")
    print(f"pytest acceptance            {statistics.median(ours for _, ours in times):.2f} s")
    print(f"ratio, median of {pairs} pairs   {ratio:.2f} (at most {LIMIT})")
    print(f"torch or internlm imported   {'no' if clean else 'YES'}")
    return int(ratio > LIMIT or not clean)


def seconds(command: Sequence[str], folder: Path | str, status: int) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != status:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
