"""Makes stand-in checkouts: one folder an InternLM generation, with what the suite reads and what it launches."""

import json
import shutil
from pathlib import Path

from fixtures.toml import load_toml

HERE = Path(__file__).parent
TAGS = sorted(path.stem for path in HERE.glob("*.toml"))


def asks(tag):
    return load_toml(HERE / f"{tag}.toml")


def checkout(tag, folder):
    """A checkout of `tag` in `folder`: train.py, version.txt and the sources that tell the generation."""
    what = asks(tag)
    launch = folder / "internlm" / "initialize" / "launch.py"
    launch.parent.mkdir(parents=True)
    (folder / "internlm" / "__init__.py").write_text("raise ImportError('sources are read, never imported')\n")
    launch.write_text("".join(f"# {mark}\n" for mark in what["marks"]))
    shutil.copy(HERE / "standin.py", folder / "train.py")
    (folder / "asks.json").write_text(json.dumps(what))
    (folder / "version.txt").write_text(f"{tag}\n")
    return folder
