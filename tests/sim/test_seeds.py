"""Fifty simulated days: the whole daemon against in-process worlds, with the faults that each seed draws.

`make sim` runs many more. A seed that fails prints its faults and its events; it becomes a named scenario.
"""

import pytest

from autoscaler.simulate.seeds import run_seed


@pytest.mark.parametrize("seed", range(50))
def test_every_job_is_served_or_explained_and_nothing_is_left(seed: int) -> None:
    outcome = run_seed(seed)

    assert not outcome.violations, outcome.report()
    assert outcome.jobs > 0
