"""A sample of the tests with damaged files (`make fuzz` runs all of them)."""

from tests.fuzz.campaign import campaign
from tests.fuzz.formats import FORMATS


def test_damaged_files_are_refused_or_read_right():
    counts, failures = campaign(8 * len(FORMATS), seed=7, formats=list(FORMATS))
    assert not failures, failures
    assert all(found.total() == 8 for found in counts.values())
    assert sum(found["refused"] for found in counts.values()) > 4 * len(FORMATS), counts
