"""The report in a real headless Chromium: it works, it is accessible, nothing leaves it and nothing breaks out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from fixtures.evidence import write_json
from reports.language import LANGUAGES
from reports.page import write
from tests.reports import samples
from tests.reports.samples import JUDGED_AT

SHOW_ALL = ".case { content-visibility: visible !important }"  # axe and layout see what a reader would scroll to


@dataclass
class Opened:
    """A page in the browser and all that it did that it should not."""

    page: object
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser):
    """Opens a report; the test fails if it logs an error, throws, asks anything or requests anything."""
    contexts = []

    def open_(path: Path, width: int = 1280, dark: bool = False) -> Opened:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        result = Opened(context.new_page())
        page, note = result.page, result.complaints.append
        page.on("console", lambda m: note(f"console {m.type}: {m.text}"))
        page.on("pageerror", lambda e: note(f"error: {e}"))
        page.on("dialog", lambda d: (note(f"dialog: {d.message}"), d.dismiss()))
        own = path.as_uri()
        page.on("request", lambda r: None if r.url in (own, "about:srcdoc") else note(f"request: {r.url[:200]}"))
        page.goto(own)
        page.add_style_tag(content=SHOW_ALL)
        return result

    yield open_
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def tests_html(tmp_path_factory) -> str:
    """A real document of pytest-html, with hostile output in it."""
    folder = tmp_path_factory.mktemp("pytest")
    (folder / "test_it.py").write_text(
        "def test_one():\n    pass\n\n\ndef test_two():\n    print('</script><script>parent.broken = 1</script>')\n"
        "    assert '<img src=x onerror=top.broken=1>' == 0\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    subprocess.run([*command, "--html", str(folder / "t.html"), "--self-contained-html"], cwd=folder, check=False)
    return (folder / "t.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reports(tmp_path_factory, tests_html) -> dict[str, Path]:
    """The vendor's report in each language, one of them not certifiable."""
    results = samples.vendor(tmp_path_factory.mktemp("browser"))
    made = {}
    for language in LANGUAGES:
        page = write(results, judged_at=JUDGED_AT, language=language, tests_html=tests_html)
        made[language] = page.rename(results / f"{language}.html")
    dirty = json.loads((results / "results.json").read_text())
    dirty["suite"]["commit"] += "-dirty"
    write_json(results / "results.json", dirty)
    made["dirty"] = write(results, judged_at=JUDGED_AT)
    return made


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("which", ["en", "zh", "dirty"])
def test_nothing_overflows(opened, reports, which, width):
    report = opened(reports[which], width)
    assert report.page.evaluate("document.documentElement.scrollWidth") == width
    spilling = """[...document.querySelectorAll("main *:not(.spoken):not(.scroll *):not(.symbols *)")]
        .filter(e => e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1
            && !e.closest(".scroll, pre, .symbols, .spoken, .matrix thead")).map(e => e.outerHTML.slice(0, 120))"""
    assert report.page.evaluate(spilling) == []
    assert report.complaints == []


@pytest.mark.parametrize(("which", "width", "dark"), [("en", 1280, False), ("zh", 390, True), ("dirty", 390, False)])
def test_axe_finds_nothing(opened, reports, which, width, dark):
    report = opened(reports[which], width, dark)
    report.page.evaluate("document.querySelectorAll('details:not(.tests)').forEach(d => d.open = true)")
    found = Axe().run(report.page, options={"resultTypes": ["violations"]})
    assert [(v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in found.response["violations"]] == []


@pytest.mark.parametrize("which", ["en", "zh"])
def test_every_curve_is_drawn_and_every_link_leads_somewhere(opened, reports, which):
    page = opened(reports[which]).page
    keys = page.eval_on_selector_all("figure", "fs => [...new Set(fs.map(f => f.className))]")
    assert set(keys) == {"loss", "difference", "tgs", "step-time", "memory", "power", "long-loss", "long-tgs"}
    sizes = page.eval_on_selector_all(
        ".plot svg .line, .plot svg .bars", "ps => ps.map(p => { const b = p.getBBox(); return [b.width, b.height] })"
    )
    assert len(sizes) >= 15
    assert all(width > 100 for width, _ in sizes)
    targets = page.eval_on_selector_all("a[href]", "as => as.map(a => a.getAttribute('href'))")
    assert len(targets) > 20
    assert [t for t in targets if not page.evaluate("id => !!document.getElementById(id)", t[1:])] == []


def test_values_under_the_pointer_and_by_keyboard(opened, reports):
    report = opened(reports["en"])
    page = report.page
    plot = page.locator("#case-7B-tp1-pp1-zero8 figure.loss .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator(".tip")
    assert tip.is_visible()
    assert re.match(r"step (4|5)\d", tip.inner_text())
    page.mouse.move(1, 1)
    assert tip.is_hidden()
    # the values are those of the log, to seven digits
    loss = samples.steps(100, 1).loss
    plot.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert plot.get_attribute("role") == "slider"
    spoken = plot.get_attribute("aria-valuetext")
    assert spoken.startswith("step 1: repeat-1 ")
    assert float(spoken.split()[3].rstrip(";")) == pytest.approx(loss[1], rel=1e-6)
    page.keyboard.press("End")
    assert plot.get_attribute("aria-valuenow") == "99"
    assert report.complaints == []


def test_the_folded_tests_document_is_shown_in_a_frame_that_cannot_reach_the_page(opened, reports):
    report = opened(reports["en"])
    page = report.page
    assert page.locator("details.tests").get_attribute("open") is None
    page.locator("details.tests > summary").click()
    frame = page.frame_locator("details.tests iframe")
    frame.locator(".results-table-row").first.wait_for()
    assert frame.locator(".results-table-row").count() == 2
    assert page.evaluate("'broken' in window") is False
    assert report.complaints == []


def test_the_pdf_is_a4_and_clips_nothing(opened, reports, tmp_path):
    page = opened(reports["dirty"]).page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 688, "height": 1000})  # 182 mm, what the margins leave of A4
    spilling = """[...document.querySelectorAll("main *")].filter(e => e.getClientRects().length
        && !e.closest(".spoken, .symbols") && e.getBoundingClientRect().right > 690)
        .map(e => e.outerHTML.slice(0, 120))"""
    assert page.evaluate(spilling) == []
    pdf = page.pdf(prefer_css_page_size=True)
    boxes = set(re.findall(rb"/MediaBox ?\[([\d. ]+)\]", pdf))
    assert {tuple(round(float(n)) for n in box.split()) for box in boxes} == {(0, 0, 595, 842)}


# ---------------------------------------------------------------- hostile

ATTACKS = (
    "<img src=x onerror=window.broken=1>",
    "</script><script>window.broken=1</script>",
    '"><svg onload=window.broken=1>',
    "'-window.broken=1-'",
    "{{ 7*7 }}{% raw %}",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "\x00\x01\x7f\x9b",
    "javascript:window.broken=1",
    "\ud800 lone",
    "]]><!-- --><!--judging--></style><style>*{display:none}</style>",
)
LONG = "x" * 10_000_000


def hostile(value, turn, keep=()):
    """`value` with every string in it, keys included, made hostile, save those under the keys in `keep`."""
    if isinstance(value, dict):
        return {
            key if key in KEYS else key + ATTACKS[next(turn) % len(ATTACKS)]: inner
            if key in keep
            else hostile(inner, turn, keep)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [hostile(inner, turn, keep) for inner in value]
    if not isinstance(value, str):
        return value
    n = next(turn)
    return value + (LONG if n % 100 == 50 else ATTACKS[n % len(ATTACKS)])


KEYS = {  # what the code looks up; a hostile key would only hide the hostile value
    "case", "model", "models", "cases", "layout", "runs", "criteria", "startup", "throughput", "determinism",
    "convergence", "outcome", "code", "reason", "measurements", "findings", "quoted", "name", "value", "unit",
    "comparator", "limit", "source", "text", "schema", "suite", "version", "commit", "system", "conformant", "via",
    "certifiable", "departures", "notes", "devices", "host", "nodes", "class", "summary", "advice", "rank", "file",
    "line", "time", "failure", "command", "environment", "config_sha256", "started", "ended", "workload", "seconds",
    "steps_seen", "seconds_to_first_step", "world", "reference", "losses", "gpus", "seed", "driver", "torch",
    "internlm", "python", "accelerator", "vendor_tool", "output", "memory_bytes", "speed", "repeat-1", "repeat-2",
}  # fmt: skip


def dump(path: Path, value) -> None:
    """JSON as an attacker writes it: lone surrogates and all."""
    path.write_text(json.dumps(value, ensure_ascii=True), encoding="utf-8")


def attack(results: Path) -> Path:
    """A results folder in which every string is hostile, names of folders and logs included."""
    turn = iter(range(10**9))
    cases = []
    for name in ("7B-ok", '<img src=x onerror="window.broken=1">', "\u202ename\x1b[31m"):
        lines = samples.log_text(samples.steps(100, 1)).splitlines(keepends=True)
        lines[30:30] = [text + "\n" for text in (*ATTACKS, LONG)]
        runs = {}
        for run in ("speed", "repeat-1", "repeat-2", "long"):
            runs[run] = samples.attempt(results, name, run, 1, "".join(lines), samples.complete(100))
            folder = results / runs[run]
            dump(folder / "request.json", hostile(samples.request(name, run, 1), turn))
            dump(folder / "end.json", hostile(samples.OUT_OF_MEMORY, turn))
            dump(folder / "nodes" / "node-17.json", hostile(samples.NODE, turn))
            (folder / "telemetry.jsonl").write_text('{"time": 1e308, "device": "<b>", "power_w": 1e308}\n[]\nnull\n')
        criteria = hostile(samples.verdicts(**samples.FAILED), turn, keep=("outcome", "comparator"))
        extra = {"departures": [samples.SHORT, "text"], "notes": ["note", {"a": "b"}]}
        entry = samples.case_entry(name, runs, criteria, **hostile(extra, turn))
        entry |= {"model": "m" + ATTACKS[len(cases)], "reference": {"name": ATTACKS[1], "losses": [1e308, 2, 3]}}
        cases.append(entry)
    models = [{"model": text[:300], "certifiable": False, "conformant": False, "via": text[:300]} for text in ATTACKS]
    whole = samples.results_json(cases, models=models, conformant=False, certifiable=False)
    whole |= hostile({"suite": whole["suite"], "system": {**samples.SYSTEM, "nodes": [samples.NODE]}}, turn)
    whole["departures"] = [*ATTACKS, LONG]
    dump(results / "results.json", whole)
    return results


@pytest.fixture(scope="module")
def attacked(tmp_path_factory) -> Path:
    return attack(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_text_stays_text(opened, attacked, tests_html, language):
    path = write(attacked, judged_at=JUDGED_AT, language=language, tests_html=tests_html)
    assert path.stat().st_size < 3_000_000
    text = path.read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    report = opened(path, 390)
    page = report.page
    page.locator("details.tests > summary").click()
    page.wait_for_timeout(300)
    assert page.evaluate("'broken' in window") is False
    assert page.evaluate("document.querySelectorAll('img, main svg[onload], main style, object, embed').length") == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 1
    handlers = (
        "[...document.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => /^on/.test(a.name)).length"
    )
    assert page.evaluate(handlers) == 0
    links = page.eval_on_selector_all("a", "as => as.map(a => a.getAttribute('href')[0])")
    assert set(links) == {"#"}
    assert "<img src=x onerror=window.broken=1>" in page.locator("main").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("#machine").is_visible()
    assert report.complaints == []
