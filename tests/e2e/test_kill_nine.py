"""The daemon is killed again and again during a burst; the long form is `python -m tests.e2e.kill_nine`."""

import pytest

from tests.e2e.kill_nine import kill_nine, table

KILLS = 5


@pytest.mark.timeout(180)
async def test_five_kills_during_a_burst_forget_no_job_and_double_nothing() -> None:
    outcome = await kill_nine(KILLS, seed=1)
    assert not outcome.problems, table(outcome)
    assert len(outcome.kills) == KILLS
    assert outcome.report["crashes"] == 0, "they were killed from outside"
