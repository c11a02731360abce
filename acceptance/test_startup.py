"""Does training start, and keep going, without running out of memory?"""

import pytest

from acceptance.verdicts import Verdicts
from fixtures.cases import Case


@pytest.mark.startup
def test_startup(case: Case, verdicts: Verdicts) -> None:
    verdicts.require(case, "startup")
