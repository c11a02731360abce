"""What the page says, worked out: from results and evidence to the texts and numbers of the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from markupsafe import Markup

from reports.charts import Chart, draw
from reports.curves import charts
from reports.gather import Evidence, Tried
from reports.language import Words
from reports.results import CRITERIA
from reports.text import duration, number, pair, script_json

WORST = ("fail", "inconclusive", "not run", "pass")  # a case is as good as its worst criterion
HOLDS = {
    ">=": lambda a, b: a >= b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,
    "==": lambda a, b: a == b,
}
SIGN = {">=": "≥", ">": ">", "<=": "≤", "<": "<", "==": "="}
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

    @property
    def formula(self) -> str:
        required = f" {self.sign} {self.limit}" if self.limit else ""
        return f"{self.label} {self.value}{required} {self.unit}".strip()


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
    environment: Sequence[tuple[str, str]]
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
    system: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    raw: Sequence[tuple[str, str]]
    digest: str


@dataclass(frozen=True)
class Table:
    """A list of alike objects: devices, say."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def build(words: Words, results: Mapping[str, Any], digest: str, found: Mapping[str, Evidence]) -> View:
    """The page of `results` (validated) and the evidence of each of its cases, by name."""
    anchors = _anchors(results["cases"])
    cases = [_case(words, case, found[case["case"]], anchors[case["case"]]) for case in results["cases"]]
    bar = _bar(words, results)
    heading, tone, sentence = _statement(words, results, not bar)
    counts = Counter(j.outcome for case in cases for j in case.judged)
    system, tables = _system(words, results["system"])
    nodes = [node for e in found.values() for t in e.tried if t.judged for node in t.nodes]
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
        system=system,
        tables=tables,
        raw=_raw(nodes),
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
    if certifiable is not True and not reasons:
        reasons.append(words("bar.no_model" if results["models"] else "bar.nothing"))
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
    models = results["models"]
    conform = words("form.comma").join(m["model"] for m in models if m["conformant"])
    if results["conformant"] and certifiable:
        return words("statement.conformant"), "pass", words("statement.conformant_text", models=conform)
    if not models:
        return words("statement.nothing"), "fail", words("statement.nothing_text")
    if all(m["conformant"] for m in models):
        return words("statement.uncertified"), "inconclusive", words("statement.uncertified_text", models=conform)
    failing = words("form.comma").join(m["model"] for m in models if not m["conformant"])
    return words("statement.not_conformant"), "fail", words("statement.not_conformant_text", models=failing)


def _model(words: Words, model: Mapping[str, Any], anchors: Mapping[str, str]) -> Model:
    if model["conformant"]:
        key = "model.conforms" if model["certifiable"] else "model.conforms_uncertifiable"
        sentence = words(key, case=model["via"])
    else:
        sentence = words("model.fails")
    outcome = "fail" if not model["conformant"] else "pass" if model["certifiable"] else "inconclusive"
    return Model(model["model"], outcome, model["certifiable"], sentence, anchors.get(model["via"]))


def _facts(
    words: Words, results: Mapping[str, Any], found: Mapping[str, Evidence]
) -> list[tuple[str, str]]:
    system, suite = results["system"], results["suite"]
    requests = [t.request for e in found.values() for t in e.tried if t.judged and t.request]
    pairs = [
        ("devices", _devices(words, system.get("devices"))),
        ("host", _flat(system.get("host"))),
        ("driver", _flat(system.get("driver"))),
        ("torch", _flat(system.get("torch"))),
        ("internlm", _flat(system.get("internlm") or _common(requests, "internlm"))),
        ("python", _flat(system.get("python"))),
        ("suite", words("statement.suite", version=suite["version"], commit=suite["commit"] or "–")),
        ("runs", _period(found)),
    ]
    return [(words.label("system", key), text) for key, text in pairs if text]


def _common(requests: Sequence[Mapping[str, Any]], key: str) -> Any:
    values = [r.get(key) for r in requests]
    return values[0] if values and all(v == values[0] for v in values) else None


def _devices(words: Words, devices: Any) -> str:
    """`8 × NVIDIA H100 80GB HBM3`, whichever form the devices come in."""
    if not isinstance(devices, list):
        return _flat(devices)
    names = Counter(_flat(d.get("name") or d.get("model") or d) if isinstance(d, dict) else str(d) for d in devices)
    return words("form.comma").join(f"{count} × {name}" for name, count in names.items())


def _period(found: Mapping[str, Evidence]) -> str:
    """When the judged runs were made, from their own records."""
    judged = [t for e in found.values() for t in e.tried if t.judged]
    starts = sorted(filter(None, (_moment(t.request.get("started")) for t in judged)))
    ends = sorted(filter(None, (_moment(t.end.get("ended")) for t in judged)))
    if not starts:
        return ""
    first = _when(starts[0].isoformat())
    return f"{first} – {_when(ends[-1].isoformat())}" if ends else first


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _when(text: Any) -> str:
    """An ISO time as recorded, to the second, with its UTC offset; anything else as it stands."""
    moment = _moment(text)
    if moment is None:
        return str(text or "–")
    offset = moment.strftime("%z")
    return f"{moment:%Y-%m-%d %H:%M:%S} {offset[:3]}:{offset[3:5]}"


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


def _case_facts(
    words: Words, case: Mapping[str, Any], request: Mapping[str, Any]
) -> list[tuple[str, str]]:
    workload = request.get("workload") if isinstance(request.get("workload"), dict) else {}
    pairs = [
        *((f"{key}", value) for key, value in case["layout"].items()),
        ("gpus", case["gpus"]),
        ("nodes", request.get("nodes")),
        *((key, workload.get(key)) for key in ("seq_len", "micro_bsz", "micro_num", "global_batch")),
        ("seed", request.get("seed")),
        ("deterministic", request.get("deterministic")),
    ]
    return [(words.label("facts", key), _flat(value)) for key, value in pairs if value is not None]


def _judged(words: Words, name: str, criterion: Mapping[str, Any]) -> Judged:
    figures = [_figure(words, m) for m in criterion["measurements"]]
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


def _reason(words: Words, criterion: Mapping[str, Any], deciding: Sequence[Figure]) -> str:
    """The judge's sentence; in another language the code's meaning and the figures, never translated prose."""
    if words.language == "en":
        return criterion["reason"]
    meaning = words.name("codes", criterion["code"]) or criterion["code"]
    formulas = words("form.semicolon").join(f.formula for f in deciding)
    return meaning + (words("form.colon") + formulas if formulas else "") + words("form.stop")


def _figure(words: Words, measurement: Mapping[str, Any]) -> Figure:
    value, limit, sign = (measurement.get(key) for key in ("value", "limit", "comparator"))
    deciding = sign is not None and limit is not None
    texts = pair(value, limit) if deciding else (number(value), "")
    return Figure(
        label=words.label("measurements", measurement["name"]),
        value=texts[0],
        unit=words.name("units", measurement["unit"]) or measurement["unit"],
        sign=SIGN[sign] if deciding else "",
        limit=texts[1],
        source=measurement.get("source") or "",
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
        started=_when(request.get("started")),
        took=duration(_float(end.get("seconds"))),
        first_step=duration(_float(end.get("seconds_to_first_step"))),
        steps=number(end.get("steps_seen")) if isinstance(end.get("steps_seen"), int) else "–",
        reason=words.label("failures", str(failure["class"])) if failure.get("class") else "",
        command=" ".join(map(str, command)) if isinstance(command, list) else _flat(command),
        digest=_flat(request.get("config_sha256")),
        environment=sorted((str(k), str(v)) for k, v in environment.items()) if isinstance(environment, dict) else [],
        damage=tried.damage,
    )


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


def _system(words: Words, system: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[Table]]:
    """Whatever the system record holds: plain values as pairs, lists of objects as tables."""
    pairs: list[tuple[str, str]] = []
    tables: list[Table] = []
    for path, value in _leaves(system, ()):
        title = " · ".join(words.label("system", part) for part in path)
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            columns = list(dict.fromkeys(key for item in value for key in item))
            tables.append(
                Table(
                    title,
                    [words.label("system", str(c)) for c in columns],
                    [[_flat(item.get(c)) for c in columns] for item in value],
                )
            )
        elif value not in (None, "", [], {}):
            pairs.append((title, _flat(value)))
    return pairs, tables


def _leaves(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, inner in value.items():
        here = (*path, str(key))
        if isinstance(inner, dict) and len(here) < 3:
            yield from _leaves(inner, here)
        else:
            yield here, inner


def _raw(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each node's vendor-tool output, once."""
    raw: dict[tuple[str, str], None] = {}
    for node in nodes:
        for key in ("raw", "vendor_tool", "vendor_output", "topology"):
            value = node.get(key)
            texts = value.items() if isinstance(value, dict) else [(key, value)] if value else []
            for name, text in texts:
                raw[f"{node.get('host', '')} · {name}", text if isinstance(text, str) else _flat(text)] = None
    return list(raw)


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
