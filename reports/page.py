"""The conformance report: one HTML file, a pure function of results and evidence.

The exception is what a reader has to know and no evidence holds: the time of judging, and pytest-html's document
with its own times. Those stand between `<!--judging-->` and `<!--/judging-->`; what is left without them is the same
bytes on every machine.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from reports import text
from reports.gather import Read, gather, read_logs
from reports.language import Words
from reports.results import CRITERIA, load
from reports.view import build, when

TEMPLATES = Path(__file__).parent / "templates"
NAME = "conformance.html"
_SCRIPT = re.compile(r"<script(?P<attributes>[^>]*)>(?P<code>.*?)</script\s*>", re.DOTALL | re.IGNORECASE)
# pytest-html's script keeps its filters in the session storage, which a sandboxed frame may not touch
_STORAGE = """\
(() => { const kept = {}; Object.defineProperty(window, "sessionStorage", { value: {
  getItem: (key) => (key in kept ? kept[key] : null), setItem: (key, value) => { kept[key] = String(value) } } });
history.pushState = () => {}; })();"""


def write(
    results: Path,
    *,
    judged_at: datetime,
    language: str = "en",
    tests_html: str | None = None,
    evidence: Path | None = None,
    read: Read = read_logs,
) -> Path:
    """Write `<results>/conformance.html` from `<results>/results.json` and the evidence, whole or not at all.

    judged_at    when the results were judged, with its UTC offset
    language     "en" or "zh"
    tests_html   pytest-html's self-contained document of the tests, folded at the page's end
    evidence     the folder that holds the runs, where that is not `results`
    read         gives the reading of an attempt's logs; a judge that has read them already hands its own over

    Raises ReportError if results.json is missing, incomplete or contradicts itself; ValueError for an unknown
    language or a time without offset.
    """
    page = render(
        results,
        judged_at=judged_at,
        language=language,
        tests_html=tests_html,
        evidence=evidence,
        read=read,
    )
    return write_whole(results / NAME, page)


def render(
    results: Path,
    *,
    judged_at: datetime | None,
    language: str = "en",
    tests_html: str | None = None,
    evidence: Path | None = None,
    read: Read = read_logs,
) -> str:
    """The page as text; arguments and errors as for `write`. Without a time of judging it follows from the evidence."""
    if judged_at is not None and judged_at.tzinfo is None:
        raise ValueError("judged_at has no UTC offset; pass an aware datetime")
    words = Words(language)
    judged, digest = load(results / "results.json")
    root = evidence or results
    view = build(words, judged, digest, lambda case: gather(root, case, read))
    tests = _framed(tests_html) if tests_html else None
    script = Markup(read_template("page.js"))
    return (
        environment()
        .get_template("page.html.j2")
        .render(
            words=words,
            view=view,
            criteria=CRITERIA,
            judged_at=when(judged_at.isoformat()) if judged_at else None,
            css=Markup(read_template("page.css")),
            js=script,
            tests=Markup(Markup.escape(tests)) if tests else None,
            csp=Markup(policy([str(script)] + (_scripts(tests) if tests else []))),
        )
    )


def policy(scripts: list[str]) -> str:
    """A policy under which only the scripts known here run and nothing can be fetched from or sent anywhere."""
    hashes = sorted({f"'sha256-{_digest(code)}'" for code in scripts})
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


def _framed(document: str) -> str:
    """pytest-html's document made fit for a sandboxed frame."""
    document = document.replace("\r\n", "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")
    document = document.encode("utf-8", "replace").decode("utf-8")
    document = document.replace(' onclick="location.reload()"', "")  # a handler that the policy would not run
    shim = f"<script>{_STORAGE}</script>"
    head = re.search(r"<head[^>]*>", document, re.IGNORECASE)
    return document[: head.end()] + shim + document[head.end() :] if head else shim + document


def _scripts(document: str) -> list[str]:
    """The inline scripts of a document of our own tests; they run in a frame without an origin or a network."""
    return [m["code"] for m in _SCRIPT.finditer(document) if "src=" not in m["attributes"]]


@cache
def read_template(name: str) -> str:
    """A file of templates/, as it stands."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def environment() -> jinja2.Environment:
    """Templates in which every value is made visible and escaped."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=text.finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=False,
    )
    made.filters["cap"] = lambda value, limit: Markup(Markup.escape(text.clean(value, limit)))
    return made


def write_whole(path: Path, page: str) -> Path:
    """A reader never sees half a report; a full disk leaves the old one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(page)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
