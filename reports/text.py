"""Text that came from a machine under test: made visible and short before it goes on a page.

Everything here is hostile until shown otherwise: log lines, file names, device names, environment values.
Escaping for HTML is jinja2's; this module removes what survives escaping and still deceives a reader.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from markupsafe import Markup

RANK = re.compile(r"(\w+)_rank_(\d+)")  # the name of a measurement that each rank has
LIMIT = 2000  # characters of one value on the page; the evidence keeps the rest

# C0 and C1 controls, zero-width characters, bidi marks, embeddings, overrides and isolates, line separators,
# lone surrogates (which cannot be written as UTF-8), tags and non-characters. Newline and tab stay.
_DECEIVING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?[+-]\d\d:\d\d", re.ASCII)


def clean(text: str, limit: int = LIMIT) -> str:
    """`text` with every invisible or direction-changing character shown, cut to `limit` characters."""
    shown = text.replace("\r\n", "\n")[:limit]
    shown = _DECEIVING.sub(_visible, shown)
    return shown if len(text) <= limit else f"{shown} … [{limit:,} / {len(text):,}]"


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # the control pictures block: NUL as one glyph, ESC as another
    return "\u2421" if code == 0x7F else f"‹U+{code:04X}›"


def finalize(value: Any) -> Any:
    """jinja2's hook for every `{{ expression }}`: no text reaches the page without `clean`, no None is printed."""
    if value is None:
        return ""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def script_json(value: Any) -> Markup:
    """`value` as JSON for a `<script type="application/json">`: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def number(value: float | int | bool | None, digits: int = 5) -> str:
    """`value` for a reader: thousands separated, at least `digits` significant digits, no exponent within reason."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size and (size < 1e-4 or size >= 1e15):
        return f"{value:.{digits - 1}e}"
    whole = len(str(int(size))) if size >= 1 else 0
    decimals = max(0, digits - whole) if size >= 1 else _decimals_below_one(size, digits)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _decimals_below_one(size: float, digits: int) -> int:
    leading = 0 if size == 0 else -int(f"{size:e}".split("e")[1]) - 1
    return digits + leading


def pair(value: float | int | None, limit: float | int | None) -> tuple[str, str]:
    """Measured and required value, with as many digits as it takes to tell them apart where they differ."""
    for digits in range(5, 18):
        texts = number(value, digits), number(limit, digits)
        if value == limit or texts[0] != texts[1]:
            break
    return texts


def moment(text: Any) -> datetime | None:
    """The time in an ISO text with a UTC offset, as the suite writes it; None for anything else.

    Python versions differ in what else `fromisoformat` takes, and a report is the same bytes under each.
    """
    if not isinstance(text, str) or not _MOMENT.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def duration(seconds: float | None) -> str:
    """`seconds` as a person says it: `41.2 s`, `54 min 10 s`, `71 h 59 min`."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
