"""Is tonight as good as the nights before? Only with --history FILE --fail-on-regression."""

from collections.abc import Callable

import pytest

from acceptance.criteria.verdict import Verdict
from acceptance.verdicts import Verdicts
from fixtures.cases import Case


@pytest.mark.regression
def test_regression(case: Case, verdicts: Verdicts, tonight: Callable[[Case], Verdict]) -> None:
    verdicts.show(tonight(case))
