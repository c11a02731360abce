"""The report as text: what it claims, that it is the same bytes, that it refuses what it cannot stand behind."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from acceptance.criteria.codes import CODES, FINDINGS
from fixtures.evidence import write_json
from fixtures.internlm.log import LogError
from reports.__main__ import main
from reports.language import LANGUAGES, Words
from reports.page import render, write
from reports.results import ReportError
from tests.reports import samples
from tests.reports.samples import JUDGED_AT

STAMP = "2026-05-05 09:30:00 +08:00"


@pytest.fixture(scope="module")
def vendor(tmp_path_factory) -> Path:
    return samples.vendor(tmp_path_factory.mktemp("vendor"))


@pytest.fixture(scope="module")
def page(vendor) -> str:
    return render(vendor, judged_at=JUDGED_AT)


def page_of(tmp_path: Path, results: dict, **more) -> str:
    write_json(tmp_path / "results.json", results)
    return render(tmp_path, judged_at=JUDGED_AT, **more)


def one_case(**changes) -> dict:
    return samples.results_json([samples.case_entry("7B-tp1-pp1-zero8", {}, samples.verdicts())], **changes)


def heading(page: str) -> str:
    return re.search(r"<h1>.*?<span>(.*?)</span></h1>", page)[1]


# ---------------------------------------------------------------- the same bytes


def test_same_evidence_same_bytes(vendor, page):
    # another process, so that hash order and caches differ
    code = f"""from tests.reports.samples import JUDGED_AT; from reports.page import render; from pathlib import Path
import sys; sys.stdout.buffer.write(render(Path({str(vendor)!r}), judged_at=JUDGED_AT).encode())"""
    root = Path(__file__).parents[2]
    again = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert again.stdout.decode() == page


def test_the_folder_does_not_matter(vendor, tmp_path):
    pages = []
    for name in ("one", "another/folder"):
        copy = shutil.copytree(vendor, tmp_path / name)
        (copy / "runs/7B-tp1-pp1-zero8/speed/attempt-2/end.json").write_text("{")  # messages name the file
        pages.append(render(copy, judged_at=JUDGED_AT))
    assert pages[0] == pages[1]


def timeless(page: str) -> str:
    """The part that evidence determines."""
    return re.sub(r"<!--judging-->.*?<!--/judging-->", "<!--judging--><!--/judging-->", page, flags=re.DOTALL)


def test_time_of_judging_and_the_tests_document_stand_in_the_named_block_alone(vendor):
    first = render(vendor, judged_at=JUDGED_AT, tests_html="<html><head></head><body><script>1</script>")
    later = render(vendor, judged_at=JUDGED_AT + timedelta(days=400))
    assert first != later
    assert timeless(first) == timeless(later)
    assert STAMP in first
    assert STAMP not in timeless(first)
    sent = render(vendor, judged_at=None)
    assert timeless(sent) == timeless(first)
    assert STAMP not in sent
    assert "default-src 'none'" in sent, "also the report in a submission lets no script of others run"


def test_hostile_text_cannot_widen_the_named_block(tmp_path):
    results = one_case(suite={"version": "<!--judging-->", "commit": "<!--/judging-->"})
    page = page_of(tmp_path, results)
    assert page.count("<!--judging-->") == page.count("<!--/judging-->") == 3


def test_written_whole_and_readable_by_others(vendor, tmp_path):
    write_json(tmp_path / "results.json", one_case())
    path = write(tmp_path, judged_at=JUDGED_AT)
    assert path == tmp_path / "conformance.html"
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(p.name for p in tmp_path.iterdir()) == ["conformance.html", "results.json"]


# ---------------------------------------------------------------- what it claims


def test_a_conformant_machine_is_said_to_conform_and_by_which_case(page):
    assert heading(page) == "Conformant"
    assert "conforms, by 7B-tp1-pp1-zero8" in page
    assert '<aside class="bar"' not in page
    assert "8 × NVIDIA A100-SXM4-80GB" in page


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"suite": {"version": "0.1.0", "commit": "abc-dirty"}}, "changed after its commit"),
        ({"suite": {"version": "0.1.0", "commit": None}}, "commit of the suite is not known"),
        ({"departures": [{"code": "open", "text": "open: lr changed"}]}, "open: lr changed"),
        ({"departures": ["run with --steps 20"]}, "run with --steps 20"),
        ({"certifiable": False}, "No model of these results can be certified"),
    ],
)
def test_what_cannot_be_certified_never_reads_like_a_certificate(tmp_path, changes, reason):
    page = page_of(tmp_path, one_case(**changes))
    assert heading(page) == "Not certifiable"
    assert '<aside class="bar"' in page
    assert reason in page
    assert '@top-center { content: "Not certifiable" }' in page


def test_tiny_passes_without_a_certificate(tmp_path):
    models = [{"model": "tiny", "certifiable": False, "conformant": True, "via": "7B-tp1-pp1-zero8"}]
    results = one_case(models=models, conformant=False)
    del results["certifiable"]
    page = page_of(tmp_path, results)
    assert heading(page) == "Not certifiable"
    assert "they are never certifiable" in page


def test_a_failing_machine(tmp_path):
    case = samples.case_entry("7B-x", {}, samples.verdicts(**samples.FAILED))
    models = [{"model": "7B", "certifiable": True, "conformant": False, "via": None}]
    page = page_of(tmp_path, samples.results_json([case], models=models, conformant=False))
    assert heading(page) == "Not conformant"
    assert "Rank 5 ran out of device memory in step 3 of 100." in page
    assert 'id="case-7B-x-determinism"' in page


def test_a_model_that_was_not_judged_neither_conforms_nor_fails(tmp_path):
    results = one_case()
    results["models"].append({"model": "13B", "certifiable": True, "judged": False, "conformant": False, "via": None})
    page = page_of(tmp_path, results)
    assert heading(page) == "Conformant"
    assert "was not judged" in page


def test_no_cases_at_all(tmp_path):
    page = page_of(tmp_path, samples.results_json([samples.case_entry("x", {}, samples.verdicts())]) | {
        "cases": [], "models": [], "conformant": False, "certifiable": False})  # fmt: skip
    assert heading(page) == "Nothing judged"


def test_failures_are_quoted_with_cause_and_what_to_try(page):
    failure = page[page.index('<div class="failure"') :]
    for text in ("Out of memory", "Tried to allocate 172.00 MiB", "logs/rank-5.log:412", "Use a smaller micro_bsz"):
        assert text in failure


def test_every_attempt_is_listed_and_the_judged_one_is_marked(page):
    rows = re.findall(r'<tr(?: class="superseded")?><th scope="row">speed</th>.*?</tr>', page)
    assert len(rows) == 4
    assert ["judged" in row for row in rows[:2]] == [False, True]
    assert "superseded" in rows[0]


def test_power_becomes_tokens_per_joule(page):
    # 4,021 tokens/GPU/s on eight devices that draw about 380 W each
    ratio = float(re.search(r"([\d.]+) tokens per joule", page)[1])
    assert ratio == pytest.approx(4021 / 380, rel=0.01)


def test_power_of_several_nodes_is_added_and_one_unwatched_leaves_no_tokens_per_joule(tmp_path):
    shutil.copytree(samples.vendor(tmp_path / "sample"), tmp_path / "two")
    (whole,) = (tmp_path / "two").rglob("telemetry.jsonl")
    (whole.parent / "telemetry").mkdir()
    for node in (0, 1):
        rows = [line for line in whole.read_text().splitlines() if json.loads(line)["device"] // 4 == node]
        (whole.parent / "telemetry" / f"node-{node}.jsonl").write_text("\n".join(rows))
    whole.unlink()
    ratio = float(re.search(r"([\d.]+) tokens per joule", render(tmp_path / "two", judged_at=JUDGED_AT))[1])
    assert ratio == pytest.approx(4021 / 380, rel=0.01)
    (whole.parent / "telemetry" / "node-1.jsonl").unlink()
    assert "no tokens per joule" in render(tmp_path / "two", judged_at=JUDGED_AT)


def test_repeats_that_differ_are_said_to_and_drawn(page):
    third = page[page.index('id="case-7B-tp4-pp1-zero2"') :]
    assert "The repeats differ at 88 of 100 steps, first at step 12." in third
    assert '<figure class="difference">' in third


# ---------------------------------------------------------------- damage is shown, not hidden


def test_damaged_evidence_is_in_plain_sight_and_stops_nothing(vendor, tmp_path):
    results = shutil.copytree(vendor, tmp_path / "r")
    speed = results / "runs/7B-tp1-pp1-zero8/speed/attempt-2"
    (speed / "end.json").write_text("{")
    shutil.rmtree(results / "runs/7B-tp1-pp1-zero8/repeat-1")
    page = render(results, judged_at=JUDGED_AT)
    attention = page[page.index('id="attention"') : page.index('class="case"')]
    assert "cannot be read as JSON" in attention
    assert "The judged evidence is not there: repeat-1" in attention


def test_an_unreadable_log_is_in_plain_sight(vendor):
    def read(attempt):
        raise LogError(attempt.path / "logs" / "rank-0.log", 7, "a figure is cut")

    page = render(vendor, judged_at=JUDGED_AT, read=read)
    assert "rank-0.log:7: a figure is cut" in page
    assert "<figure" not in page


def test_a_case_name_cannot_climb_out_of_the_evidence(vendor, tmp_path):
    shutil.copytree(vendor, tmp_path / "secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    case = samples.case_entry("../secret/runs/7B-tp1-pp1-zero8", {}, samples.verdicts())
    page = page_of(inside, samples.results_json([case]))
    assert "<figure" not in page
    assert "The judged evidence is not there" in page


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("conformant"), "results lacks the key 'conformant'"),
        (lambda r: r.update(schema=2), "results.schema is '2' where 1 belongs"),
        (lambda r: r.update(schema=True), "results.schema is 'True'"),
        (lambda r: r.update(conformant="yes"), "results.conformant is 'yes' where bool belongs"),
        (lambda r: r["cases"][0]["criteria"].pop("startup"), r"cases\[0\].criteria lacks the key 'startup'"),
        (lambda r: r["cases"][0]["criteria"]["startup"].update(outcome="passed"), "startup.outcome is 'passed'"),
        (lambda r: r["cases"][0]["criteria"]["startup"]["measurements"][0].pop("limit"), "lacks the key 'limit'"),
        (lambda r: r["models"][0].update(via="other"), "said to conform by 'other', which did not pass everything"),
        (lambda r: r["cases"][0]["criteria"]["startup"].update(outcome="fail"), "did not pass everything"),
        (lambda r: r["models"][0].update(certifiable=False), "no certifiable model conforms"),
        (lambda r: r["cases"].append(r["cases"][0]), "a case is listed twice"),
    ],
)
def test_incomplete_or_contradictory_results_are_refused(tmp_path, edit, message):
    results = copy.deepcopy(one_case())
    edit(results)
    with pytest.raises(ReportError, match=message):
        page_of(tmp_path, results)
    assert not (tmp_path / "conformance.html").exists()


def test_missing_results_and_naive_times_are_refused(tmp_path):
    with pytest.raises(ReportError, match="not found; run `pytest acceptance` first"):
        write(tmp_path, judged_at=JUDGED_AT)
    with pytest.raises(ValueError, match="no UTC offset"):
        render(tmp_path, judged_at=datetime(2026, 5, 5))
    with pytest.raises(ValueError, match="no language 'fr'"):
        render(tmp_path, judged_at=datetime.now(timezone.utc), language="fr")


# ---------------------------------------------------------------- languages


def test_the_languages_have_the_same_keys():
    open_ended = {
        "codes",
        "findings",
        "departures",
        "advice",
        "units",
        "sources",
    }  # English has these from the judge itself
    tables = [Words(language)._table for language in LANGUAGES]
    for section in set().union(*tables) - open_ended:
        assert sorted(tables[0][section]) == sorted(tables[1][section]), section


def test_chinese_knows_every_code_finding_and_failure_class():
    words = Words("zh")
    assert [c for c in CODES if not (words.name("codes", c) or words.name("codes", c.partition("-")[2]))] == []
    assert [f for f in FINDINGS if not words.name("findings", f)] == []
    from acceptance.criteria.codes import FAILURE_CLASSES

    assert [c for c in FAILURE_CLASSES if not (words.name("failures", c) and words.name("advice", c))] == []


def test_every_measurement_that_a_criterion_makes_has_a_name_in_both_languages():
    sources = (Path(__file__).parents[2] / "acceptance" / "criteria").glob("*.py")
    name = r'Measurement\(\s*f?"(\w+?)(?:_rank_\{rank\})?"'
    made = {n for s in sources for n in re.findall(name, s.read_text(encoding="utf-8"))}
    assert {"headroom", "headroom_percent", "peak_memory"} <= made
    assert len(made) > 30
    for language in LANGUAGES:
        words = Words(language)
        assert [name for name in made if not words.name("measurements", name)] == []


def test_the_rank_with_the_least_headroom_is_shown(page):
    for label in ("Peak memory", "Device memory left beside the peak", "Share of device memory left beside the peak"):
        assert f"{label}, rank 7" in page
        assert f"{label}, rank 0" not in page


def test_the_chinese_report_derives_reasons_from_codes_and_figures(vendor):
    page = render(vendor, judged_at=JUDGED_AT, language="zh")
    assert '<html lang="zh-CN">' in page
    assert heading(page) == "符合要求"
    assert "两次重复的损失或梯度范数不同：逐位相等的步数 12 步（要求 = 100）" in page
    for prose in ("All 100 steps ran", "loss differs first at", "Use a smaller micro_bsz"):
        assert prose not in page


# ---------------------------------------------------------------- the command


def test_the_command_renders_again_and_says_where(vendor, capsys):
    assert main(["html", str(vendor), "--lang", "zh"]) == 0
    assert capsys.readouterr().out.strip() == str(vendor / "conformance.html")
    assert "符合要求" in (vendor / "conformance.html").read_text(encoding="utf-8")


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    assert main(["html", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "results.json").write_text(json.dumps({"schema": 1}))
    assert main(["html", str(tmp_path)]) == 1
    assert "lacks the key" in capsys.readouterr().err
