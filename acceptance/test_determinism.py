"""Do the first 100 losses repeat, and do they follow the reference curve?"""

import pytest

from acceptance.verdicts import Verdicts
from fixtures.cases import Case


@pytest.mark.determinism
def test_determinism(case: Case, verdicts: Verdicts) -> None:
    verdicts.require(case, "determinism")
