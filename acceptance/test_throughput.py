"""Does training reach the minimum TGS (tokens/GPU/second)?"""

import pytest

from acceptance.verdicts import Verdicts
from fixtures.cases import Case


@pytest.mark.throughput
def test_throughput(case: Case, verdicts: Verdicts) -> None:
    verdicts.require(case, "throughput")
