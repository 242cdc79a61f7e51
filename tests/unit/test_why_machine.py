"""A machine's "why": who ended it, on what evidence, and what it does while it lives."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from autoscaler.model import EndReason, Instance, InstanceMove, InstanceState, Interruption, LedgerEntry
from autoscaler.why_machine import EndedBy, MachineStory, ended_by, machine_answer, machine_timeline
from tests.admin_world import LINUX, SPOT, instance, job

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
S = InstanceState


def earlier(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def gone(ending: EndReason | None, **changes: object) -> Instance:
    return replace(instance(1, earlier(30), S.TERMINATED), ending=ending, **changes)  # type: ignore[arg-type]


def move(seconds: float, state: InstanceState, cause: str) -> InstanceMove:
    return InstanceMove(instance=gone(None).id, at=earlier(seconds), from_state=None, to_state=state, cause=cause)


def line(actor: str, action: str, reason: str, *, evidence: str = "") -> LedgerEntry:
    return LedgerEntry(
        at=earlier(30),
        actor=actor,
        action=action,
        subject=gone(None).id,
        pool=LINUX,
        reason=reason,
        outcome="asked",
        evidence=evidence,
    )


def taken(sources: Sequence[str] = ("agent", "queue"), *, announced: bool = True) -> Interruption:
    return Interruption(
        instance=gone(None).id,
        provider=SPOT.provider,
        pool=LINUX,
        capacity_pool=SPOT,
        noticed_at=earlier(150),
        sources=tuple(sources),
        is_announced=announced,
        reclaim_at=earlier(30) if announced else None,
        cutoff_at=earlier(40),
        ended_at=earlier(30),
    )


def test_a_machine_that_its_cloud_took_names_the_cloud_the_notice_and_the_lost_job() -> None:
    served = job(7, earlier(400), name="build")
    row = gone(EndReason.INTERRUPTED, job=served.id, is_job_lost=True)
    story = MachineStory(row=row, moves=[move(30, S.TERMINATED, "its cloud ended it")], taken=taken(), job=served)
    told = machine_answer(story, NOW)
    assert told.ended_by is EndedBy.CLOUD
    assert told.sentence == (
        "aws took it back 30 s ago, at 11:59:30 UTC after a notice 2 min ahead; "
        "its job was build of acme/shop, which was lost with it."
    )
    assert [(one.source, one.text) for one in told.evidence[:2]] == [
        ("agent", "notice of a reclaim, for 11:59:30 UTC"),
        ("queue", "notice of a reclaim, for 11:59:30 UTC"),
    ]


def test_a_machine_taken_without_a_word_says_so() -> None:
    story = MachineStory(row=gone(EndReason.VANISHED), taken=taken(["heartbeat"], announced=False))
    told = machine_answer(story, NOW)
    assert told.ended_by is EndedBy.CLOUD
    assert "without a notice" in told.sentence


def test_a_machine_that_a_game_day_took_says_so() -> None:
    story = MachineStory(row=gone(EndReason.INTERRUPTED), taken=replace(taken(), is_game_day=True))
    told = machine_answer(story, NOW)
    assert told.ended_by is EndedBy.GAME_DAY
    assert told.sentence.startswith("A game day ended it 30 s ago, at 11:59:30 UTC after a notice 2 min ahead")
    assert machine_timeline(story)[0].text.startswith("a game day at aws announced")


def test_what_we_ended_carries_what_was_known_then() -> None:
    asked = line("autoscaler", "terminate", "surplus: idle for 2 min", evidence="idle since 11:57; its forge let it go")
    moves = [move(31, S.TERMINATING, "idle for 2 min"), move(30, S.TERMINATED, "the cloud says so")]
    told = machine_answer(MachineStory(row=gone(EndReason.SURPLUS), moves=moves, ledger=[asked]), NOW)
    assert told.ended_by is EndedBy.AUTOSCALER
    assert told.sentence == (
        "We ended it 30 s ago, at 11:59:30 UTC because nobody needed it (idle for 2 min); it had run no job."
    )
    assert [(one.source, one.text) for one in told.evidence] == [
        ("autoscaler", "surplus: idle for 2 min; idle since 11:57; its forge let it go")
    ]


def test_a_timer_of_its_agent_is_the_agents_doing() -> None:
    told = machine_answer(
        MachineStory(row=gone(EndReason.MAX_RUNTIME), ledger=[line("agent", "ended", "max_runtime: it ran too long")]),
        NOW,
    )
    assert told.ended_by is EndedBy.AGENT
    assert told.sentence.startswith("Its own agent ended it 30 s ago, at 11:59:30 UTC because its job ran longer than")


def test_a_refused_machine_never_ran() -> None:
    moves = [move(30, S.TERMINATED, "no capacity")]
    told = machine_answer(MachineStory(row=gone(EndReason.REFUSED), moves=moves), NOW)
    assert told.sentence == "aws did not give it to us (no capacity): it never ran."
    assert told.ended_by is EndedBy.CLOUD


def test_a_machine_that_was_just_gone_blames_nobody() -> None:
    told = machine_answer(MachineStory(row=gone(EndReason.VANISHED), ledger=[line("aws", "ended", "vanished")]), NOW)
    assert told.ended_by is EndedBy.UNKNOWN
    assert told.sentence.startswith("It was gone from aws without a word 30 s ago")


@pytest.mark.parametrize(
    ("ending", "by"), [(EndReason.OPERATOR, EndedBy.OPERATOR), (EndReason.CHAOS, EndedBy.GAME_DAY)]
)
def test_people_are_named_whoever_made_the_call(ending: EndReason, by: EndedBy) -> None:
    story = MachineStory(row=gone(ending), taken=taken(), ledger=[line("autoscaler", "terminate", "asked for")])
    assert ended_by(story) is by


@pytest.mark.parametrize("ending", [None, *EndReason])
def test_every_end_has_somebody_or_says_that_nobody_knows(ending: EndReason | None) -> None:
    told = machine_answer(MachineStory(row=gone(ending)), NOW)
    assert isinstance(told.ended_by, EndedBy)
    assert told.sentence.endswith(".")
    assert "{" not in told.sentence


@pytest.mark.parametrize("state", [state for state in S if state is not S.TERMINATED])
def test_every_living_machine_says_what_it_does(state: InstanceState) -> None:
    row = instance(1, earlier(12), state)
    told = machine_answer(MachineStory(row=row, job=job(7, earlier(60), name="build")), NOW)
    assert told.ended_by is None
    assert "for 12 s now (m7i.large in eu-central-1a)" in told.sentence
    assert told.evidence == ()


def test_a_machine_being_ended_says_by_whom_already() -> None:
    row = replace(instance(1, earlier(3), S.TERMINATING), ending=EndReason.JOB_DONE)
    told = machine_answer(MachineStory(row=row, moves=[move(3, S.TERMINATING, "its job is done")]), NOW)
    assert told.ended_by is EndedBy.AUTOSCALER
    assert told.sentence.startswith("It is being ended. We ended it because its job was done")


def test_the_timeline_tells_each_thing_once_and_in_order() -> None:
    served = replace(job(7, earlier(400), name="build"), finished_at=earlier(45))
    moves = [move(200, S.REQUESTED, "a job waits"), move(30, S.TERMINATED, "the cloud says so")]
    ledger = [line("aws", "interruption", "told"), line("aws", "ended", "interrupted"), line("ann", "hold", "look")]
    lines = machine_timeline(
        MachineStory(row=gone(EndReason.INTERRUPTED), moves=moves, ledger=ledger, taken=taken(), job=served)
    )
    assert [(one.kind, one.text) for one in lines] == [
        ("machine", "Was asked for: a job waits"),
        ("loss", "aws announced that it takes it back (told by agent, queue)"),
        ("job", "build ended: queued"),
        ("machine", "Ended: the cloud says so"),
        ("decision", "Hold: look (by ann)"),
    ]
