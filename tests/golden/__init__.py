"""Golden files: what a reviewer reads. After a wanted change run the test with UPDATE_GOLDEN=1 and read the diff."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def agrees(name, text):
    """True if the golden file holds exactly `text`."""
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"{path} is missing: UPDATE_GOLDEN=1 writes it"
    assert path.read_text(encoding="utf-8") == text
    return True
