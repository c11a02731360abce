"""The report's words, by language: data files in languages/, one table each."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fixtures.toml import load_toml

FOLDER = Path(__file__).parent / "languages"
LANGUAGES = tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


class Words:
    """One language's table. `words("matrix.title")` is a text; a key that is missing is an error in the table."""

    def __init__(self, language: str) -> None:
        if language not in LANGUAGES:
            raise ValueError(f"no language {language!r} in {FOLDER}; there are {', '.join(LANGUAGES)}")
        self.language = language
        self._table = _table(language)

    def __call__(self, key: str, **values: Any) -> str:
        section, _, name = key.partition(".")
        text = self._table[section][name]
        return text.format(**values) if values else text

    def name(self, section: str, key: str) -> str | None:
        """The text for a key that comes from evidence, None where the table has none."""
        return self._table[section].get(key)

    def label(self, section: str, key: str) -> str:
        """The text for a key that comes from evidence; the key itself, spaced, where the table has none."""
        return self.name(section, key) or key.replace("_", " ").replace("-", " ")


@cache
def _table(language: str) -> dict[str, dict[str, str]]:
    return load_toml(FOLDER / f"{language}.toml")
