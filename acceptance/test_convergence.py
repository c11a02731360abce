"""After the long run, is the loss below its threshold?"""

import pytest

from acceptance.verdicts import Verdicts
from fixtures.cases import Case


@pytest.mark.convergence
def test_convergence(case: Case, verdicts: Verdicts) -> None:
    verdicts.require(case, "convergence")
