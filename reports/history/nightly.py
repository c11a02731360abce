"""The history's part in a pytest session: conftest.py keeps one `Nightly` where --history is given."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from acceptance.criteria.verdict import Verdict
from acceptance.verdicts import Verdicts
from fixtures.cases import Case
from fixtures.evidence import EvidenceError
from fixtures.options import Options
from fixtures.runs import SHORT
from reports import summary
from reports.history import calendar, store
from reports.history.session import Session
from reports.history.store import HistoryError

LOOKED_BACK = 30  # nights whose gaps and changes are told after tonight's


class Nightly:
    """Begins the night, judges it for test_regression, writes and shows it at the end."""

    def __init__(self, options: Options, results: Path) -> None:
        self.options = options
        self.session = Session(options.history, results, options.compare, platform.node())

    def begin(self) -> None:
        """Called once, in the controller. Raises pytest.UsageError where the history or the pin cannot be used."""
        try:
            self.session.begin(leave_word=not self.options.evidence)
        except HistoryError as error:
            raise pytest.UsageError(f"--history {error}") from error

    def verdict(self, verdicts: Verdicts, case: Case) -> Verdict:
        """Tonight's verdict against the history, once the short runs of the case are there."""
        for run in SHORT:
            verdicts.runs.need(case, run)
        return self.session.verdict(case.name, verdicts.judge)

    def finish(self, results: Mapping[str, Any], report: Path) -> str:
        """Write the night; the table for the terminal, and --summary's file. A night that cannot be written fails the
        session, whatever its verdicts."""
        try:
            recorded = bool(self.options.evidence)
            compared = self.session.recorded(self.options.requirements) if recorded else self.session.finish(results)
            events = self._events()
            if self.options.summary:
                self.options.summary.write_text(summary.markdown(compared, events, report), encoding="utf-8")
        except (HistoryError, EvidenceError, OSError) as error:
            pytest.exit(f"the night was NOT written to the history: {error}", pytest.ExitCode.TESTS_FAILED)
        return summary.table(compared, events)

    def _events(self) -> list[str]:
        """What the nights since the last one tell: missed, killed, another driver."""
        with store.opened(self.session.path) as connection:
            nights = store.recent(connection, LOOKED_BACK)
        own = [night for night in nights if night["host"] == nights[-1]["host"]]
        since = max((night["started"] for night in own[:-1] if night["machine_name"]), default=0.0)
        return [event.text for event in calendar.events(own) if event.at > since]
