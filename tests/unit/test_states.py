"""The transition tables: only the listed moves, each with its line of history and its reason."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model import EndReason, InstanceState, JobState
from autoscaler.states import (
    INSTANCE_MOVES,
    JOB_MOVES,
    IllegalMove,
    is_live,
    is_live_job,
    move_instance,
    move_job,
)
from tests.admin_world import instance, job

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
ENDS = (InstanceState.TERMINATING, InstanceState.TERMINATED)


def test_every_state_has_its_row_in_its_table() -> None:
    assert set(INSTANCE_MOVES) == set(InstanceState)
    assert set(JOB_MOVES) == set(JobState)


@given(before=st.sampled_from(InstanceState), after=st.sampled_from(InstanceState))
def test_an_instance_moves_only_along_its_table(before: InstanceState, after: InstanceState) -> None:
    row = instance(1, NOW, before)
    later = NOW + timedelta(seconds=5)
    if after in INSTANCE_MOVES[before]:
        moved, line = move_instance(row, after, now=later, cause="because", ending=EndReason.SURPLUS)
        assert (moved.state, moved.since, moved.version) == (after, later, row.version + 1)
        assert (line.instance, line.at, line.from_state, line.to_state, line.cause) == (
            row.id,
            later,
            before,
            after,
            "because",
        )
    else:
        with pytest.raises(IllegalMove):
            move_instance(row, after, now=later, cause="because", ending=EndReason.SURPLUS)


@given(before=st.sampled_from(JobState), after=st.sampled_from(JobState))
def test_a_job_moves_only_along_its_table(before: JobState, after: JobState) -> None:
    row = job(1, NOW, before)
    if after in JOB_MOVES[before]:
        moved = move_job(row, after)
        assert (moved.state, moved.version) == (after, row.version + 1)
    else:
        with pytest.raises(IllegalMove):
            move_job(row, after)


@given(st.lists(st.sampled_from(InstanceState), max_size=30))
def test_a_history_is_a_chain_and_ends_at_terminated(wishes: list[InstanceState]) -> None:
    row, at = instance(1, NOW, InstanceState.REQUESTED), InstanceState.REQUESTED
    for number, wish in enumerate(wishes):
        if wish not in INSTANCE_MOVES[row.state]:
            continue
        ending = EndReason.SURPLUS if wish in ENDS else None
        row, line = move_instance(row, wish, now=NOW + timedelta(seconds=number), cause="next", ending=ending)
        assert line.from_state is at
        at = line.to_state
    assert row.state is at
    assert is_live(row) == (at is not InstanceState.TERMINATED)
    assert (row.ending is not None) == (at in ENDS)


@pytest.mark.parametrize("state", ENDS)
def test_nothing_ends_without_a_reason(state: InstanceState) -> None:
    with pytest.raises(IllegalMove, match="without an end reason"):
        move_instance(instance(1, NOW, InstanceState.LAUNCHED), state, now=NOW, cause="because")


def test_the_first_end_reason_stays() -> None:
    going, _ = move_instance(
        instance(1, NOW, InstanceState.IDLE),
        InstanceState.TERMINATING,
        now=NOW,
        cause="idle",
        ending=EndReason.SURPLUS,
    )
    gone, _ = move_instance(going, InstanceState.TERMINATED, now=NOW, cause="gone", ending=EndReason.VANISHED)
    assert gone.ending is EndReason.SURPLUS


def test_terminal_job_states_are_not_live() -> None:
    live = {state for state in JobState if is_live_job(job(1, NOW, state))}
    assert live == {JobState.QUEUED, JobState.RUNNING, JobState.LOST}


def test_nothing_leaves_terminated_or_requeued() -> None:
    assert INSTANCE_MOVES[InstanceState.TERMINATED] == frozenset()
    assert JOB_MOVES[JobState.REQUEUED] == frozenset()
