"""The front door: options, and the wiring of cases, runs, judge and report into pytest. Nothing else."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import uuid
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from acceptance.criteria.verdict import Verdict
from acceptance.judge import CRITERIA, Judge, Policy
from acceptance.requirements import Requirements, RequirementsError
from acceptance.requirements import load as load_requirements
from acceptance.verdicts import Verdicts, properties
from fixtures import evidence, plan, rendezvous
from fixtures.cases import Case
from fixtures.devices import CPU
from fixtures.internlm.models import is_tiny
from fixtures.leases import LeaseError
from fixtures.options import OPTIONS, ROOT, collect, ini_name
from fixtures.progress import Display, Screen
from fixtures.runs import Runs, write_plan
from fixtures.setup import Setup, SetupError, assumptions, interpreter, prepare

if TYPE_CHECKING:
    from reports.history.nightly import Nightly

SETUP = pytest.StashKey[Setup]()
REQUIREMENTS = pytest.StashKey[Requirements]()
DISPLAY = pytest.StashKey[Display]()
SUMMARY = pytest.StashKey[str]()
SELECTED = pytest.StashKey[tuple[Case, ...]]()
LEADER = pytest.StashKey[rendezvous.Leader]()
FOLLOWER = pytest.StashKey[rendezvous.Follower]()
NIGHTLY: pytest.StashKey[Nightly] = pytest.StashKey()
JUDGE = pytest.StashKey[Judge]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("acceptance", "acceptance of accelerators by real InternLM training")
    for option in OPTIONS:
        if option.type is None:
            group.addoption(f"--{option.name}", dest=option.dest, action="store_true", default=None, help=option.help)
        else:
            group.addoption(
                f"--{option.name}",
                dest=option.dest,
                action="append" if option.repeat else "store",
                type=option.check,
                default=None,
                metavar=option.metavar,
                choices=option.choices,
                help=option.help,
            )
        if option.ini:
            parser.addini(ini_name(option), option.help)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not asks_for_acceptance(config):
        return
    try:
        options = collect(config.getoption, config.getini)
        requirements = load_requirements(options.requirements, options.min_tgs, options.max_loss)
        launches = not (options.dry_run or config.option.collectonly)
        config.stash[REQUIREMENTS] = requirements
        config.stash[SETUP] = prepare(options, launches, requirements.long_run)
    except (SetupError, RequirementsError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    if config.stash[SETUP].follows:
        config.option.xmlpath = config.option.htmlpath = None  # the leader reports
    else:
        register_history(config)
    if options.dry_run or config.stash[SETUP].follows:
        config.option.dist, config.option.tx = "no", []
    if leaves_results(config):
        open_results(options.results)
        config.option.xmlpath = config.option.xmlpath or str(options.results / "junit.xml")
        if not config.option.htmlpath:
            config.option.htmlpath = str(own_tests_html(options.results))
            config.option.self_contained_html = True


def open_results(folder: Path) -> None:
    """Make the folder; that it cannot be written is better known now than when the runs are over."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise pytest.UsageError(
            f"--results {folder}: cannot be written ({error.strerror}); name another folder, or mend this one"
        ) from error


def register_history(config: pytest.Config) -> None:
    """The nights' file, where --history is given; what makes no sense without it is refused."""
    options = config.stash[SETUP].options
    if options.history:
        from reports.history.nightly import Nightly  # not needed by anybody else

        config.stash[NIGHTLY] = Nightly(options, config.stash[SETUP].results)
        return
    for name, value in (
        ("--compare", options.compare),
        ("--fail-on-regression", options.fail_on_regression),
        ("--summary", options.summary),
    ):
        if value:
            raise pytest.UsageError(f"{name} compares with earlier nights; say where they are: --history FILE")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """test_regression.py is there for --fail-on-regression alone."""
    asked = NIGHTLY in config.stash and config.stash[SETUP].options.fail_on_regression
    return True if collection_path.name == "test_regression.py" and not asked else None


def own_tests_html(results: Path) -> Path:
    return results / ".tests.html"


def asks_for_acceptance(config: pytest.Config) -> bool:
    """Whether the command line names acceptance/, something in it, or the whole checkout."""
    folder = ROOT / "acceptance"
    for argument in config.args:
        path = (config.invocation_params.dir / argument.split("::")[0]).resolve()
        if path in (folder, ROOT) or folder in path.parents:
            return True
    return False


def leaves_results(config: pytest.Config) -> bool:
    setup = config.stash.get(SETUP, None)
    return setup is not None and not (config.option.collectonly or setup.options.dry_run or setup.follows)


def is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames or SETUP not in metafunc.config.stash:
        return
    converges = metafunc.definition.get_closest_marker("convergence") is not None
    metafunc.parametrize(
        "case",
        [
            pytest.param(case, id=case.name, marks=[pytest.mark.long] if converges and not is_tiny(case.model) else [])
            for case in metafunc.config.stash[SETUP].cases
        ],
        scope="session",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SETUP not in config.stash:
        return
    cases = [case.name for case in config.stash[SETUP].cases]

    def place(item: pytest.Item) -> tuple[int, int]:
        criterion = next((i for i, name in enumerate(CRITERIA) if item.get_closest_marker(name)), len(CRITERIA))
        return cases.index(item.callspec.params["case"].name), criterion

    ours = [item for item in items if "case" in getattr(getattr(item, "callspec", None), "params", {})]
    items[:] = sorted(ours, key=place) + [item for item in items if item not in ours]


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if SETUP not in config.stash:
        return
    selected = {i.callspec.params["case"].name for i in session.items if hasattr(i, "callspec")}
    config.stash[SELECTED] = tuple(case for case in config.stash[SETUP].cases if case.name in selected)
    if leaves_results(config) and not is_worker(config):
        refuse_nothing(config)
        show_plan(config, config.stash[SELECTED])


def pytest_xdist_node_collection_finished(node: object, ids: Sequence[str]) -> None:
    config: pytest.Config = node.config  # type: ignore[attr-defined]
    if SETUP in config.stash and SELECTED not in config.stash:
        cases = config.stash[SETUP].cases
        config.stash[SELECTED] = tuple(case for case in cases if any(i.endswith(f"[{case.name}]") for i in ids))
        refuse_nothing(config)
        show_plan(config, config.stash[SELECTED])


def refuse_nothing(config: pytest.Config) -> None:
    """Without an accelerator only tiny is collected: say so where a selection asked for more, and fail."""
    setup = config.stash[SETUP]
    if not config.stash[SELECTED] and setup.found.profile.name == CPU and not setup.options.evidence:
        del config.stash[SELECTED]  # nothing to hand over
        pytest.exit(
            "ERROR: no accelerator was found, so only tiny is collected, and your selection takes none of its cases; "
            "check the driver, name the family with --accelerator, or plan with --dry-run",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def show_plan(config: pytest.Config, cases: Sequence[Case]) -> None:
    setup = config.stash[SETUP]
    if not setup.options.evidence:
        display(config).say(plan.table(cases, setup, config.stash[REQUIREMENTS]))


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if FOLLOWER in config.stash:
        take_part(config)
        return None  # the tests judge what the runs have left
    if SETUP not in config.stash or not config.stash[SETUP].options.dry_run or config.option.collectonly:
        return None
    setup = config.stash[SETUP]
    runs = Runs(setup, "dry-run", config.stash[REQUIREMENTS].long_run, display(config).say)
    show_plan(config, config.stash[SELECTED])
    folder = setup.options.results / "plan"
    for case in config.stash[SELECTED]:
        for run in evidence.RUNS:
            write_plan(runs, case, run, folder)
    display(config).say(f"nothing was launched; configs and commands of every run: {folder}")
    return True


def display(config: pytest.Config) -> Display:
    """The one place that writes to the user; in an xdist worker it hands the controller what it has to say."""
    if DISPLAY not in config.stash:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        results = config.stash[SETUP].results
        if terminal is None or is_worker(config):
            config.stash[DISPLAY] = Display(results)
        else:
            config.stash[DISPLAY] = Display(results, Screen(terminal))
            config.pluginmanager.register(config.stash[DISPLAY])
    return config.stash[DISPLAY]


def meet(config: pytest.Config) -> None:
    """Come together with the other nodes of --rdzv, as the one that leads or as one that follows."""
    setup, say = config.stash[SETUP], display(config).say
    where = setup.rdzv, setup.options.results, setup.terms, setup.options.startup_limit, say
    try:
        if setup.follows:
            keep = lend_node(config)  # before it comes: the leader may launch at once
            python = interpreter(setup.options)
            config.stash[FOLLOWER] = rendezvous.join(*where, python=python, own=setup.own_devices, keep=keep)
        else:
            config.stash[LEADER] = leader = rendezvous.lead(*where)
            leader.publish()
            config.stash[SETUP] = replace(setup, hosts=leader.hosts)
    except (rendezvous.RendezvousError, LeaseError) as error:
        raise pytest.UsageError(str(error)) from error


def lend_node(config: pytest.Config) -> Sequence[int]:
    """Hold this node's devices for the leader's runs until the session is over; the files that hold them."""
    setup = config.stash[SETUP]
    if setup.found.profile.name == CPU:  # of processes on a CPU everybody may have as many as they like
        return ()
    waiting = functools.partial(display(config).say, "waiting for the devices of this node")
    held = contextlib.ExitStack()
    config.add_cleanup(held.close)
    return held.enter_context(setup.leases.acquire(len(setup.devices), waiting=waiting)).files


def take_part(config: pytest.Config) -> None:
    """Serve the leader's runs with this node's devices, until its session is over."""
    try:
        config.stash[FOLLOWER].serve()
    except rendezvous.RendezvousError as error:
        pytest.exit(f"ERROR: {error}", returncode=pytest.ExitCode.USAGE_ERROR)


def pytest_sessionstart(session: pytest.Session) -> None:
    setup = session.config.stash.get(SETUP, None)
    if setup and setup.rdzv and not is_worker(session.config):
        meet(session.config)
    if leaves_results(session.config) and not is_worker(session.config):
        display(session.config).start()
        if NIGHTLY in session.config.stash:
            session.config.stash[NIGHTLY].begin()


@pytest.fixture(scope="session")
def runs(pytestconfig: pytest.Config) -> Runs:
    """Launches each run once, or finds it."""
    session = getattr(pytestconfig, "workerinput", {}).get("testrunuid") or uuid.uuid4().hex
    long_run = pytestconfig.stash[REQUIREMENTS].long_run
    return Runs(pytestconfig.stash[SETUP], session, long_run, display(pytestconfig).say)


@pytest.fixture(scope="session")
def verdicts(pytestconfig: pytest.Config, runs: Runs) -> Verdicts:
    """The verdict of each criterion, once its runs are there."""
    return Verdicts(runs, judge(pytestconfig), pytestconfig.stash[SELECTED])


@pytest.fixture(scope="session")
def tonight(pytestconfig: pytest.Config, verdicts: Verdicts) -> Callable[[Case], Verdict]:
    """Case -> its verdict against the nights before."""
    return functools.partial(pytestconfig.stash[NIGHTLY].verdict, verdicts)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """The verdict's code and figures go with the test's report, into junit.xml, from xdist's workers too."""
    verdicts = getattr(item, "funcargs", {}).get("verdicts")
    if call.when == "call" and isinstance(verdicts, Verdicts) and verdicts.last is not None:
        item.user_properties += properties(verdicts.last)
        verdicts.last = None


def judge(config: pytest.Config) -> Judge:
    """The one of this process: a log that the tests have read is not read again for the report."""
    if JUDGE not in config.stash:
        options = config.stash[SETUP].options
        policy = Policy(options.determinism, options.reference)
        requirements = config.stash[REQUIREMENTS]
        assumed = assumptions(options, requirements.long_run) if options.evidence else None
        config.stash[JUDGE] = Judge(config.stash[SETUP].results, requirements, policy, assumed)
    return config.stash[JUDGE]


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    # Innermost wrapper: pytest-html and JUnit have written by now, the terminal has not summed up yet.
    config = session.config
    try:
        outcome = yield
        if leaves_results(config) and not is_worker(config):
            display(config).stop()
            if SELECTED in config.stash:
                hand_over(config)
    except OSError as error:
        if not leaves_results(config):
            raise
        pytest.exit(
            f"ERROR: results and report cannot be written: {error}. What ran is kept as evidence: mend that, then "
            f"judge it again with --evidence {config.stash[SETUP].results}",
            returncode=pytest.ExitCode.INTERNAL_ERROR,
        )
    finally:
        if LEADER in config.stash:
            config.stash[LEADER].over()
    return outcome


def hand_over(config: pytest.Config) -> None:
    """results.json and conformance.html from all evidence, and the verdict table."""
    from pytest_html.basereport import BaseReport

    from reports import console, derived, ocp, page  # not needed to collect

    options = config.stash[SETUP].options
    judged = judge(config)
    results = judged.results_json(config.stash[SELECTED])
    evidence.write_json(options.results / "results.json", results)
    derived.keep_rules(options.results, options.requirements, options.reference)
    ocp.write(options.results, results, judged.results, judged.reading)
    document = Path(config.option.htmlpath)
    report = page.write(
        options.results,
        language=options.lang,
        tests_html=document.read_text(encoding="utf-8") if document.is_file() else None,
        judged_at=datetime.now(timezone.utc).astimezone(),
        evidence=judged.results,
        read=judged.reading,
    )
    if document == own_tests_html(options.results):
        document.unlink(missing_ok=True)
        for plugin in [p for p in config.pluginmanager.get_plugins() if isinstance(p, BaseReport)]:
            config.pluginmanager.unregister(plugin)  # it would name a file that is now part of our page
    config.stash[SUMMARY] = console.summary(results, report)
    if NIGHTLY in config.stash:
        config.stash[SUMMARY] += "\n" + config.stash[NIGHTLY].finish(results, report)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if SUMMARY in config.stash:
        terminalreporter.section("verdicts")
        terminalreporter.write(config.stash[SUMMARY] + "\n")
