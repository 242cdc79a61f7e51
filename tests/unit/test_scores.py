"""Predictions against what happened: what is scored, when, and how the sums are read."""

import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from autoscaler.model import Job, JobState, Prediction
from autoscaler.scores import DAYS_KEPT, Scores
from autoscaler.spi import Conclusion
from tests.admin_world import GPU, LINUX, job
from tests.unit.observing import NOW, Observing, completed, id_of, seen_job, started

S = JobState
TARGET_S = 60.0


def predicted(breach: float) -> Prediction:
    return Prediction(wait_s=30, breach=breach, target_s=TARGET_S)


def begin(scores: Scores, breach: float, *, waited_s: float, number: int = 1, **changes: Any) -> Job:
    """A job leaves its queue after so long."""
    queued = job(number, NOW, prediction=predicted(breach), **changes)
    at = NOW + timedelta(seconds=waited_s)
    running = replace(queued, state=S.RUNNING, started_at=at)
    scores.job_moved(queued, running, at)
    return running


def leave(scores: Scores, *, waited_s: float, to: JobState = S.DONE, breach: float = 0.3) -> None:
    """A job ends without ever having run."""
    queued = job(1, NOW, prediction=predicted(breach))
    at = NOW + timedelta(seconds=waited_s)
    scores.job_moved(queued, replace(queued, state=to, conclusion=Conclusion.CANCELLED, finished_at=at), at)


def read(scores: Scores) -> list[tuple[float, float, int]]:
    return [(one.predicted, one.observed, one.jobs) for one in scores.reliability(None, NOW).bins]


def test_a_job_that_starts_within_its_target_kept_it_and_one_that_starts_later_did_not() -> None:
    scores = Scores({})
    begin(scores, 0.2, waited_s=TARGET_S)
    begin(scores, 0.24, waited_s=TARGET_S + 1)
    assert read(scores) == [(pytest.approx(0.22), 0.5, 2)]
    assert scores.reliability(None, NOW).brier == pytest.approx((0.2**2 + 0.76**2) / 2)


def test_a_certain_breach_is_in_the_last_tenth() -> None:
    scores = Scores({})
    begin(scores, 1.0, waited_s=100)
    begin(scores, 0.9, waited_s=100)
    assert read(scores) == [(pytest.approx(0.95), 1.0, 2)]


def test_a_job_without_a_prediction_is_not_scored() -> None:
    scores = Scores({})
    queued = job(1, NOW)
    scores.job_moved(queued, replace(queued, state=S.RUNNING, started_at=NOW), NOW)
    assert read(scores) == []
    assert scores.reliability(None, NOW).brier is None


def test_a_job_that_a_person_cancelled_within_its_target_says_nothing() -> None:
    scores = Scores({})
    leave(scores, waited_s=TARGET_S)
    assert read(scores) == []


@pytest.mark.parametrize("to", [S.DONE, S.ABANDONED])
def test_a_job_that_waited_past_its_target_was_late_whatever_came_then(to: JobState) -> None:
    scores = Scores({})
    leave(scores, waited_s=TARGET_S + 1, to=to)
    assert read(scores) == [(pytest.approx(0.3), 1.0, 1)]


def test_a_job_that_its_forge_puts_back_is_scored_once() -> None:
    scores = Scores({})
    running = begin(scores, 0.2, waited_s=5)
    again = replace(running, state=S.QUEUED, started_at=None)
    scores.job_moved(running, again, NOW)
    late = NOW + timedelta(seconds=500)
    scores.job_moved(again, replace(again, state=S.RUNNING, started_at=late), late)
    assert read(scores) == [(pytest.approx(0.2), 0.0, 1)]


def test_each_pool_has_scores_of_its_own_beside_those_of_all() -> None:
    scores = Scores({})
    begin(scores, 0.1, waited_s=5)
    begin(scores, 0.8, waited_s=500, pool=GPU)
    assert [(one.pool, one.jobs) for one in scores.calibrations(NOW)] == [(None, 2), (GPU, 1), (LINUX, 1)]


def test_a_week_is_looked_back_upon_and_no_more() -> None:
    scores = Scores({})
    begin(scores, 0.1, waited_s=5)
    assert scores.reliability(None, NOW + timedelta(days=DAYS_KEPT - 1)).jobs == 1
    assert scores.reliability(None, NOW + timedelta(days=DAYS_KEPT)).jobs == 0
    for day in range(30):
        at = NOW + timedelta(days=day)
        queued = job(1, at, prediction=predicted(0.1))
        scores.job_moved(queued, replace(queued, state=S.RUNNING, started_at=at), at)
    scores.unkept.make_due()
    (row,) = scores.unkept.take(10)
    assert len(row.value) < 1500, "it does not grow with history"
    assert Scores({row.key: row}).reliability(None, NOW + timedelta(days=29)).jobs == DAYS_KEPT


def test_of_jobs_that_are_late_as_often_as_predicted_each_tenth_is_near_the_diagonal() -> None:
    scores, dice = Scores({}), random.Random(7)
    for number in range(20_000):
        breach = dice.random()
        begin(scores, breach, waited_s=500 if dice.random() < breach else 5, number=number)
    found = scores.reliability(None, NOW)
    assert len(found.bins) == 10
    assert all(abs(one.predicted - one.observed) < 0.03 for one in found.bins)
    assert found.brier == pytest.approx(1 / 6, abs=0.01), "the variance that such chances have"


async def test_a_prediction_is_scored_from_the_row_and_survives_a_restart() -> None:
    world = await Observing().start()
    await world.webhook(seen_job(1), seen_job(2))
    for number in (1, 2):
        row = world.rows.jobs[id_of(number)]
        world.rows.amend_job(row, prediction=predicted(0.5))
    await world.see()
    assert world.metrics.registry.get_sample_value("autoscaler_job_breach_probability_count") == 2
    await world.webhook(started(1, started_at=NOW))
    await world.webhook(completed(2, started_at=NOW + timedelta(seconds=1), on=None))
    world.wait(61)
    await world.see()
    after = await world.restarted()
    overall, linux = after.observer.lessons.scores.calibrations(after.now)
    assert (overall.jobs, linux.pool, linux.jobs) == (2, LINUX, 2)
    assert [(one.predicted, one.observed) for one in linux.bins] == [(0.5, 0.0)]
