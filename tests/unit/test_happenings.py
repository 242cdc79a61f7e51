"""One line per step of a machine's life and per decision: what the store holds three times is told once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from autoscaler.http.happenings import Happening, happening_document, happenings
from autoscaler.model import Instance, InstanceMove, InstanceState, Job, JobState, LedgerEntry
from autoscaler.spi import Conclusion
from tests.admin_world import instance, job

T0 = datetime(2026, 1, 5, 12, tzinfo=UTC)
S = InstanceState
LIFE = (
    (0, S.REQUESTED, "1 queued job has no machine"),
    (0.1, S.LAUNCHED, "the cloud launched it"),
    (4, S.READY, "its agent said hello"),
    (4, S.REGISTERING, "build waits"),
    (4.2, S.IDLE, "its agent started the runner"),
    (4.4, S.BUSY, "the forge says it runs build"),
    (16, S.TERMINATING, "its job is done"),
    (17, S.TERMINATED, "the cloud says it ended exit 0"),
)
DONE = job(
    7,
    T0 - timedelta(seconds=2),
    JobState.DONE,
    name="build",
    started_at=T0 + timedelta(seconds=4),
    finished_at=T0 + timedelta(seconds=16),
    conclusion=Conclusion.SUCCESS,
)
MACHINE = instance(1, T0 + timedelta(seconds=17), S.TERMINATED, job=DONE.id)


def moves(row: Instance, steps: int, *, at: datetime = T0) -> list[InstanceMove]:
    """The first steps of a whole life, newest first."""
    life = [
        InstanceMove(instance=row.id, at=at + timedelta(seconds=age), from_state=None, to_state=state, cause=cause)
        for age, state, cause in LIFE[:steps]
    ]
    return life[::-1]


def told(
    found: list[InstanceMove], *rows: Instance, jobs: tuple[Job, ...] = (), ledger: tuple[LedgerEntry, ...] = ()
) -> list[Happening]:
    numbered = [(len(ledger) - place, entry) for place, entry in enumerate(ledger)]
    return happenings(found, numbered, machines={row.id: row for row in rows}, jobs={one.id: one for one in jobs})


def words(lines: list[Happening]) -> list[str]:
    return ["".join(part.text for part in line.parts) + (f" | {line.why}" if line.why else "") for line in lines]


def entry(action: str, subject: str, *, reason: str = "because", outcome: str = "asked", age: float = 0) -> LedgerEntry:
    return LedgerEntry(
        at=T0 + timedelta(seconds=age),
        actor="autoscaler",
        action=action,
        subject=subject,
        pool="linux",
        reason=reason,
        outcome=outcome,
    )


def test_a_whole_life_is_three_lines_newest_first() -> None:
    assert words(told(moves(MACHINE, 8), MACHINE, jobs=(DONE,))) == [
        "i-0001 ended | its job is done: success after 12 s",
        "i-0001 took build of acme/shop | up in 4 s, the job waited 6 s",
        "Launched i-0001 for linux (m7i.large in eu-central-1a) | 1 queued job has no machine",
    ]


def test_a_machine_without_a_job_yet_is_ready() -> None:
    assert words(told(moves(MACHINE, 5), MACHINE))[0] == "i-0001 is ready | 4 s after it was asked for"


def test_a_line_keeps_its_key_while_its_words_change() -> None:
    for steps, before, after in ((1, "Launching", "Launched"), (7, "i-0001 is ending", "i-0001 ended")):
        first = told(moves(MACHINE, steps), MACHINE, jobs=(DONE,))
        second = {line.key: line for line in told(moves(MACHINE, steps + 1), MACHINE, jobs=(DONE,))}
        line = next(line for line in first if words([line])[0].startswith(before))
        assert words([second[line.key]])[0].startswith(after)


def test_machines_asked_for_together_are_one_line() -> None:
    fleet = [instance(number, T0, S.LAUNCHED) for number in range(5)]
    found = [move for row in fleet for move in moves(row, 2)]
    (line,) = told(found[::-1], *fleet)
    assert [part.machine for part in line.parts if part.machine] == ["i-0000", "i-0001", "i-0002"]
    assert " and 2 more for linux" in words([line])[0]


def test_the_ledger_does_not_repeat_what_a_machine_tells() -> None:
    ledger = (
        entry("terminate", MACHINE.id, reason="job_done: its job is done", age=16),
        entry("launch", MACHINE.token, outcome="1 asked of here"),
    )
    assert told(moves(MACHINE, 8), MACHINE, jobs=(DONE,), ledger=ledger) == told(
        moves(MACHINE, 8), MACHINE, jobs=(DONE,)
    )


def test_a_refused_launch_and_a_requeue_are_told_with_their_outcome() -> None:
    ledger = (
        entry("requeue", DONE.id, reason="its machine was interrupted", outcome="queued again", age=5),
        entry("launch", "aws/a/m/spot", reason="no capacity", outcome="failed"),
    )
    lines = told([], jobs=(DONE,), ledger=ledger)
    assert words(lines) == [
        "Put back in its queue: build of acme/shop: queued again | its machine was interrupted",
        "Launch: aws/a/m/spot: failed | no capacity",
    ]
    assert lines[0].parts[1].job == DONE.id


def test_a_machine_that_was_refused_did_not_come() -> None:
    end = InstanceMove(
        instance=MACHINE.id, at=T0, from_state=S.REQUESTED, to_state=S.TERMINATED, cause="refused: no capacity"
    )
    assert words(told([end, *moves(MACHINE, 1)], MACHINE))[0] == "i-0001 did not come | refused: no capacity"


def test_an_unannounced_end_and_a_reclaim_are_told_with_their_cause() -> None:
    notice = InstanceMove(
        instance=MACHINE.id,
        at=T0 + timedelta(seconds=9),
        from_state=S.BUSY,
        to_state=S.DRAINING,
        cause="the cloud takes it back in 2 min",
    )
    gone = replace(notice, at=T0 + timedelta(seconds=20), to_state=S.TERMINATED, cause="absent from two listings.")
    assert words(told([gone, notice, *moves(MACHINE, 6)], MACHINE))[:2] == [
        "i-0001 ended | absent from two listings",
        "i-0001 is being reclaimed | the cloud takes it back in 2 min",
    ]


def test_rows_that_are_gone_leave_lines_without_links() -> None:
    lines = told(moves(MACHINE, 8))
    assert len(lines) == 3
    assert happening_document(lines[1])["parts"][1] == {"text": " took a job", "job": "", "machine": ""}
