"""Running the suite as a user does: pytest in a process of its own, from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def acceptance(*arguments: str | Path, environment: Mapping[str, str] | None = None, seconds: float = 600):
    """`pytest acceptance <arguments>`; the completed process with text output, stderr within stdout."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "acceptance", "-p", "no:cacheprovider", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
