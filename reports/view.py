"""What the page says, worked out: from results and evidence to the texts and numbers of the template."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from fixtures.internlm.models import is_tiny
from reports.charts import Chart, draw
from reports.curves import charts
from reports.gather import Evidence, Tried
from reports.language import Words
from reports.results import CRITERIA
from reports.text import RANK, duration, moment, number, pair, script_json

WORST = ("fail", "inconclusive", "not run", "pass")  # a case is as good as its worst criterion
HOLDS = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
}
SIGN = {">=": "≥", ">": ">", "<=": "≤", "<": "<", "==": "="}
LAYOUT = ("tp", "pp", "zero", "dp")
UNSAID = ("schema", "clock", "id_digest", "diff_sha256")  # of no use to a reader
LONG_TEXT = 300  # characters; longer values are folded
QUOTED_LINES, QUOTED_LENGTH = 40, 600
WARMUP = 10  # steps; the throughput criterion's own where it says so in its measurements


@dataclass(frozen=True)
class Figure:
    """A measurement as a table row: texts, and whether it decides and holds."""

    label: str
    value: str
    unit: str
    sign: str
    limit: str
    source: str
    holds: bool | None
    formula: str  # all of it in one line


@dataclass(frozen=True)
class Judged:
    """One criterion of one case."""

    name: str
    title: str
    outcome: str
    code: str
    reason: str
    figures: Sequence[Figure]
    headline: Figure | None
    findings: Sequence[tuple[str, Sequence[Figure]]]
    quoted: Sequence[str]


@dataclass(frozen=True)
class Plot:
    """A drawn chart with its words; `values` is the JSON that the pointer reads."""

    chart: Chart
    svg: Markup
    values: Markup
    summary: str


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed, what is quoted for it, and what to try."""

    run: str
    title: str
    summary: str
    advice: str
    where: str
    quoted: Sequence[str]


@dataclass(frozen=True)
class Row:
    """One attempt in the run table."""

    run: str
    number: int
    judged: bool
    outcome: str
    outcome_word: str
    started: str
    took: str
    first_step: str
    steps: str
    reason: str
    command: str
    digest: str
    environment: Sequence[str]
    damage: str


@dataclass(frozen=True)
class Case:
    """One case's section."""

    anchor: str
    name: str
    model: str
    outcome: str
    facts: Sequence[tuple[str, str]]
    departures: Sequence[str]
    notes: Sequence[str]
    judged: Sequence[Judged]
    plots: Sequence[Plot]
    rows: Sequence[Row]
    failures: Sequence[Failure]
    missing: Sequence[str]


@dataclass(frozen=True)
class Model:
    """One model's line in the statement."""

    name: str
    outcome: str
    certifiable: bool
    sentence: str
    anchor: str | None


@dataclass(frozen=True)
class View:
    """The whole page."""

    heading: str
    tone: str  # pass, fail, inconclusive: colour and shape of the statement
    sentence: str
    bar: Sequence[str]  # why not certifiable; empty where it is
    models: Sequence[Model]
    facts: Sequence[tuple[str, str]]
    counts: Sequence[tuple[str, int]]
    attention: Sequence[tuple[str, str, str, str]]  # anchor, case, outcome, text
    cases: Sequence[Case]
    machine: Sequence[Machine]
    digest: str


@dataclass(frozen=True)
class Machine:
    """One record of the machine: a node's own, or what holds for the whole session."""

    title: str
    pairs: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    texts: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A list of alike objects: devices, say."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def build(
    words: Words, results: Mapping[str, Any], digest: str, gather: Callable[[Mapping[str, Any]], Evidence]
) -> View:
    """The page of `results` (validated); `gather` gives the evidence of one of its cases."""
    anchors = _anchors(results["cases"])
    cases, found = [], {}
    for case in results["cases"]:
        evidence = gather(case)
        cases.append(_case(words, case, evidence, anchors[case["case"]]))
        found[case["case"]] = replace(evidence, ran={})  # steps are large, and drawn by now
    bar = _bar(words, results)
    heading, tone, sentence = _statement(words, results, not bar)
    counts = Counter(j.outcome for case in cases for j in case.judged)
    nodes = _nodes(results["system"], found)
    return View(
        heading=heading,
        tone=tone,
        sentence=sentence,
        bar=bar,
        models=[_model(words, m, anchors) for m in results["models"]],
        facts=_facts(words, results, found),
        counts=[(outcome, counts[outcome]) for outcome in ("pass", "fail", "inconclusive", "not run")],
        attention=list(_attention(words, cases)),
        cases=cases,
        machine=[_machine(words, {k: v for k, v in results["system"].items() if k != "nodes"}, results["suite"])]
        + [_machine(words, node) for node in nodes],
        digest=digest,
    )


# ---------------------------------------------------------------- the statement


def _bar(words: Words, results: Mapping[str, Any]) -> list[str]:
    """Why nothing here can be certified; empty only where the judge says that it can."""
    reasons = [_departure(words, d) for d in _list(results.get("departures"))]
    if str(results["suite"]["commit"] or "").endswith("-dirty"):
        reasons.append(words("bar.dirty"))
    if results["suite"]["commit"] is None:
        reasons.append(words("bar.no_commit"))
    certifiable = results.get("certifiable", any(m["certifiable"] for m in results["models"]))
    if certifiable is not True:
        if results["models"] and all(is_tiny(m["model"]) for m in results["models"]):
            reasons.append(words("bar.no_model"))
        every = [_departure(words, d) for case in results["cases"] for d in _list(case.get("departures"))]
        own = [text for text in every if text not in reasons]
        reasons += own or ([] if reasons else [words("bar.not_said" if results["models"] else "bar.nothing")])
    return list(dict.fromkeys(reasons))


def _departure(words: Words, departure: Any) -> str:
    """A departure's text by its code; in the judge's own words where the table does not know the code."""
    if not isinstance(departure, dict):
        return str(departure)
    text = str(departure.get("text") or departure.get("code") or "")
    known = words.name("departures", str(departure.get("code")))
    return text if words.language == "en" or not known else known


def _statement(words: Words, results: Mapping[str, Any], certifiable: bool) -> tuple[str, str, str]:
    """Heading, tone and first sentence. Nothing but a certifiable, conformant result reads like one."""
    models = [m for m in results["models"] if m.get("judged", True)]
    conform = _joined(words, [m["model"] for m in models if m["conformant"]], "and")
    if results["conformant"] and certifiable:
        return words("statement.conformant"), "pass", words("statement.conformant_text", models=conform)
    if not models:
        return words("statement.nothing"), "fail", words("statement.nothing_text")
    if all(m["conformant"] for m in models):
        return words("statement.uncertified"), "inconclusive", words("statement.uncertified_text", models=conform)
    failing = _joined(words, [m["model"] for m in models if not m["conformant"]], "or")
    return words("statement.not_conformant"), "fail", words("statement.not_conformant_text", models=failing)


def _joined(words: Words, names: Sequence[str], last: str) -> str:
    """`7B, 13B and 65B`: `last` is the word before the last name."""
    return words(f"form.{last}").join(filter(None, (words("form.comma").join(names[:-1]), names[-1]))) if names else ""


def _model(words: Words, model: Mapping[str, Any], anchors: Mapping[str, str]) -> Model:
    if not model.get("judged", True):
        return Model(model["model"], "not run", model["certifiable"], words("model.not_judged"), None)
    if model["conformant"]:
        key = "model.conforms" if model["certifiable"] else "model.conforms_uncertifiable"
        sentence = words(key, case=model["via"])
    else:
        sentence = words("model.fails")
    outcome = "fail" if not model["conformant"] else "pass" if model["certifiable"] else "inconclusive"
    return Model(model["model"], outcome, model["certifiable"], sentence, anchors.get(model["via"]))


def _facts(words: Words, results: Mapping[str, Any], found: Mapping[str, Evidence]) -> list[tuple[str, str]]:
    system, suite = results["system"], results["suite"]
    nodes = [node for node in _list(system.get("nodes")) if isinstance(node, dict)]
    devices = [*_list(system.get("devices")), *(d for node in nodes for d in _list(node.get("devices")))]
    pairs = [("devices", _devices(words, devices))]
    for key in ("accelerator", "host", "driver", "torch", "internlm", "python", "cpu"):
        values = [system.get(key)] if system.get(key) else [node.get(key) for node in nodes]
        pairs.append((key, words("form.comma").join(dict.fromkeys(filter(None, map(_flat, values))))))
    commit = suite["commit"] or "–"
    short = commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")
    pairs += [("suite", words("statement.suite", version=suite["version"], commit=short)), ("runs", _period(found))]
    return [(words.label("system", key), text) for key, text in pairs if text]


def _devices(words: Words, devices: Sequence[Any]) -> str:
    """`8 × NVIDIA H100 80GB HBM3`, whichever form the devices come in."""
    names = Counter(_flat(d.get("name") or d.get("model") or d) if isinstance(d, dict) else str(d) for d in devices)
    return words("form.comma").join(f"{count} × {name}" for name, count in names.items())


def _period(found: Mapping[str, Evidence]) -> str:
    """When the judged runs were made, from their own records."""
    judged = [t for e in found.values() for t in e.tried if t.judged]
    starts = sorted(filter(None, (moment(t.request.get("started")) for t in judged)))
    ends = sorted(filter(None, (moment(t.end.get("ended")) for t in judged)))
    if not starts:
        return ""
    first = when(starts[0].isoformat())
    return f"{first} – {when(ends[-1].isoformat())}" if ends else first


def when(text: Any) -> str:
    """An ISO time as recorded, to the second, with its UTC offset; anything else as it stands."""
    at = moment(text)
    return at.isoformat(" ", "seconds").replace("+", " +") if at else str(text or "–")


def _attention(words: Words, cases: Sequence[Case]) -> Iterator[tuple[str, str, str, str]]:
    """Departures, missing evidence, and every verdict but a pass: what a reader must not have to look for."""
    for case in cases:
        for text in case.departures:
            yield case.anchor, case.name, "departure", text
        for text in case.missing:
            yield case.anchor, case.name, "fail", words("attention.missing", what=text)
        for row in case.rows:
            if row.damage:
                yield case.anchor, case.name, "fail", f"{row.run} {row.number}: {row.damage}"
    for outcome in ("fail", "inconclusive", "not run"):
        for case in cases:
            for judged in case.judged:
                if judged.outcome == outcome:
                    anchor = f"{case.anchor}-{judged.name}"
                    yield anchor, case.name, outcome, f"{judged.title}{words('form.colon')}{judged.reason}"


# ---------------------------------------------------------------- one case


def _anchors(cases: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """An id for each case: its name where that is a safe id and free, else its number."""
    anchors: dict[str, str] = {}
    for position, case in enumerate(cases, 1):
        name = case["case"]
        safe = name.isascii() and name.replace("-", "").replace(".", "").isalnum() and len(name) < 100
        anchors[name] = f"case-{name}" if safe else f"case-{position}"
    return anchors


def _case(words: Words, case: Mapping[str, Any], found: Evidence, anchor: str) -> Case:
    judged = [_judged(words, name, case["criteria"][name]) for name in CRITERIA]
    request = next((t.request for t in found.tried if t.judged and t.request), {})
    drawn = ((chart, draw(chart)) for chart in charts(words, case, found.ran, WARMUP))
    return Case(
        anchor=anchor,
        name=case["case"],
        model=case["model"],
        outcome=min((j.outcome for j in judged), key=WORST.index),
        facts=_case_facts(words, case, request),
        departures=[_departure(words, d) for d in _list(case.get("departures"))],
        notes=[_flat(n) for n in _list(case.get("notes"))],
        judged=judged,
        plots=[Plot(c, d[0], script_json(d[1]), _summary(words, c)) for c, d in drawn if d is not None],
        rows=[_row(words, t) for t in found.tried],
        failures=[f for t in found.tried if (f := _failure(words, t)) is not None],
        missing=found.missing,
    )


def _case_facts(words: Words, case: Mapping[str, Any], request: Mapping[str, Any]) -> list[tuple[str, str]]:
    workload = request.get("workload") if isinstance(request.get("workload"), dict) else {}
    pairs = [
        *sorted(case["layout"].items(), key=lambda pair: (*LAYOUT, pair[0]).index(pair[0])),
        ("gpus", case["gpus"]),
        ("nodes", request.get("nodes")),
        *((key, workload.get(key)) for key in ("seq_len", "micro_bsz", "micro_num", "global_batch")),
        ("seed", request.get("seed")),
    ]
    return [(words.label("facts", key), _flat(value)) for key, value in pairs if value is not None]


def _judged(words: Words, name: str, criterion: Mapping[str, Any]) -> Judged:
    figures = [_figure(words, m) for m in _worst_ranks(criterion["measurements"])]
    deciding = [f for f in figures if f.limit]
    failing = [f for f in deciding if f.holds is False]
    return Judged(
        name=name,
        title=words("criteria." + name),
        outcome=criterion["outcome"],
        code=criterion["code"],
        reason=_reason(words, criterion, deciding),
        figures=figures,
        headline=next(iter(failing or deciding or figures), None),
        findings=[
            (
                words.name("findings", f["code"]) or f["code"] if words.language != "en" else f["text"],
                [_figure(words, m) for m in _list(f.get("measurements"))],
            )
            for f in _list(criterion.get("findings"))
        ],
        quoted=_quoted(criterion.get("quoted")),
    )


def _worst_ranks(measurements: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The measurements without those per rank that hold and are not the worst of their kind: the chart shows each."""
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for measurement in measurements:
        if (rank := RANK.fullmatch(measurement["name"])) and measurement["value"] is not None:
            kinds.setdefault(rank[1], []).append(measurement)
    worst = [(min if kind.startswith("headroom") else max)(m, key=lambda m: m["value"]) for kind, m in kinds.items()]
    ranks = [m for kind in kinds.values() for m in kind]
    for measurement in measurements:
        limit, sign = measurement["limit"], measurement["comparator"]
        holds = sign is None or limit is None or measurement not in ranks or HOLDS[sign](measurement["value"], limit)
        if not RANK.fullmatch(measurement["name"]) or measurement in worst or not holds:
            yield measurement


def _label(words: Words, name: str) -> str:
    """A measurement's name: the table's, with the rank where it ends in one."""
    rank = RANK.fullmatch(name)
    if rank:
        return words.label("measurements", rank[1]) + words("form.rank", rank=rank[2])
    return words.label("measurements", name)


def _reason(words: Words, criterion: Mapping[str, Any], deciding: Sequence[Figure]) -> str:
    """The judge's sentence; in another language the code's meaning and the figures, never translated prose."""
    if words.language == "en":  # the outcome stands beside it
        reason = str(criterion["reason"]).removeprefix("not run: ")
        return reason[:1].upper() + reason[1:]
    code = criterion["code"]
    meaning = words.name("codes", code) or words.name("codes", code.partition("-")[2]) or code
    formulas = words("form.semicolon").join(f.formula for f in deciding)
    return meaning + (words("form.colon") + formulas if formulas else "") + words("form.stop")


def _figure(words: Words, measurement: Mapping[str, Any]) -> Figure:
    value, limit, sign = (measurement.get(key) for key in ("value", "limit", "comparator"))
    deciding = sign is not None and limit is not None
    texts = pair(value, limit) if deciding else (number(value), "")
    label, unit = _label(words, measurement["name"]), words.name("units", measurement["unit"]) or measurement["unit"]
    formula = f"{label} {texts[0]} {unit}".rstrip()
    return Figure(
        label=label,
        value=texts[0],
        unit=unit,
        sign=SIGN[sign] if deciding else "",
        limit=texts[1],
        source=words.name("sources", measurement["source"]) or measurement["source"],
        formula=formula + (words("form.required", sign=SIGN[sign], limit=texts[1]) if deciding else ""),
        holds=HOLDS[sign](value, limit) if deciding and value is not None else False if deciding else None,
    )


def _quoted(lines: Any) -> list[str]:
    texts = [str(line) for line in _list(lines)]
    kept = [t if len(t) <= QUOTED_LENGTH else f"{t[:QUOTED_LENGTH]} … [{len(t):,}]" for t in texts[:QUOTED_LINES]]
    return kept + ([f"… [{len(texts):,}]"] if len(texts) > QUOTED_LINES else [])


def _summary(words: Words, chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for series in chart.series:
        finite = series.y[abs(series.y) < float("inf")]
        if len(finite):
            parts.append(
                words(
                    "chart.summary",
                    label=series.label,
                    count=f"{len(series.y):,}",
                    first=number(float(finite[0])),
                    last=number(float(finite[-1])),
                    low=number(float(finite.min())),
                    high=number(float(finite.max())),
                )
            )
    parts += [level.label for level in chart.levels]
    return words("form.semicolon").join(parts)


def _row(words: Words, tried: Tried) -> Row:
    request, end = tried.request, tried.end
    outcome = str(end.get("outcome") or "unfinished")
    failure = end.get("failure") if isinstance(end.get("failure"), dict) else {}
    environment = request.get("environment")
    command = request.get("command")
    return Row(
        run=tried.attempt.run,
        number=tried.attempt.number,
        judged=tried.judged,
        outcome=outcome,
        outcome_word=words.label("run_outcomes", outcome),
        started=when(request.get("started")),
        took=duration(_float(end.get("seconds"))),
        first_step=duration(_float(end.get("seconds_to_first_step"))),
        steps=number(end.get("steps_seen")) if isinstance(end.get("steps_seen"), int) else "–",
        reason=words.label("failures", str(failure["class"])) if failure.get("class") else "",
        command=shlex.join(map(str, command)) if isinstance(command, list) else _flat(command),
        digest=_flat(request.get("config_sha256")),
        environment=_settings(environment) if isinstance(environment, dict) else [],
        damage=tried.damage,
    )


def _settings(environment: Mapping[str, Any]) -> list[str]:
    """Environment variables as a shell would set them; null is one that was taken away."""
    return [f"unset {k}" if v is None else f"{k}={shlex.quote(str(v))}" for k, v in sorted(environment.items())]


def _failure(words: Words, tried: Tried) -> Failure | None:
    failure = tried.end.get("failure")
    if not isinstance(failure, dict):
        return None
    kind = str(failure.get("class") or "unknown")
    english = words.language == "en"
    place = [
        words("failure.rank", rank=failure["rank"]) if failure.get("rank") is not None else "",
        f"{failure.get('file')}:{failure.get('line')}" if failure.get("file") else "",
        str(failure.get("time") or ""),
    ]
    return Failure(
        run=f"{tried.attempt.run} {tried.attempt.number}",
        title=words.label("failures", kind),
        summary=str(failure.get("summary") or "") if english else "",
        advice=str(failure.get("advice") or "") if english else words.name("advice", kind) or words("advice.unknown"),
        where=" · ".join(filter(None, place)),
        quoted=_quoted(failure.get("quoted")),
    )


# ---------------------------------------------------------------- the machine


def _nodes(system: Mapping[str, Any], found: Mapping[str, Evidence]) -> list[Mapping[str, Any]]:
    """What each node said of itself, once a host: as results.json has it, else from the judged attempts."""
    judged = (node for e in found.values() for t in e.tried if t.judged for node in t.nodes)
    listed = [node for node in _list(system.get("nodes")) if isinstance(node, dict)]
    return list({str(node.get("host")): node for node in listed or judged}.values())


def _machine(words: Words, record: Mapping[str, Any], suite: Mapping[str, Any] | None = None) -> Machine:
    """Whatever a record holds: plain values as pairs, lists of objects as tables, long text folded."""
    pairs: list[tuple[str, str]] = []
    tables: list[Table] = []
    texts: list[tuple[str, str]] = []
    for path, value in [*_leaves(record, ()), *_leaves({"suite": suite} if suite else {}, ())]:
        title = " · ".join(words.label("system", part) for part in path)
        if path[-1] in UNSAID or value in (None, "", [], {}):
            continue
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            tables.append(_table(words, title, value))
        elif isinstance(value, str) and ("\n" in value or len(value) > LONG_TEXT):
            texts.append((title, value))
        else:
            pairs.append((title, _sized(path[-1], value)))
    host = record.get("host") if suite is None else None
    return Machine(words("machine.node", host=host) if host else "", list(dict.fromkeys(pairs)), tables, texts)


def _table(words: Words, title: str, items: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for item in items for key in item))
    rows = [[_sized(column, item.get(column)) for column in columns] for item in items]
    return Table(title, [words.label("system", str(column)) for column in columns], rows)


def _sized(key: str, value: Any) -> str:
    """A value as text; bytes as GiB."""
    if key.endswith("bytes") and isinstance(value, int):
        return f"{number(value / 2**30)} GiB"
    return _flat(value)


def _leaves(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        here = (*path, str(key))
        if isinstance(inner, dict) and len(here) < 3:
            yield from _leaves(inner, here)
        else:
            yield here, inner


def _flat(value: Any) -> str:
    """Any JSON value on one line."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "✓" if value else "✗"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, list):
        return ", ".join(map(_flat, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items() if v not in (None, "", [], {}))
    return str(value)


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
