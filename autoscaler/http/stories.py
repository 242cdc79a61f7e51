"""The answers to "why" as documents: gathers what the store knows of one job or one machine, has it put in words.

`why_story`, `why` and `why_machine` own the words; this reads for them, a bounded number of rows for each answer.
"""

from collections.abc import Mapping, Sequence

from autoscaler.http.documents import (
    Document,
    instance_document,
    instant,
    instant_or_none,
    interruption_document,
    job_document,
    ledger_document,
    move_document,
    timeline_document,
)
from autoscaler.http.lookup import job_of, run_of
from autoscaler.http.view import DaemonView
from autoscaler.model import EndReason, Instance, InstanceMove, Interruption, Job, JobState, LedgerEntry
from autoscaler.spi import InstanceId, PoolName
from autoscaler.why import Answer, answer, are_boots_failing
from autoscaler.why_machine import MachineAnswer, MachineStory, machine_answer, machine_timeline
from autoscaler.why_outlook import Outlook
from autoscaler.why_start import Estimate
from autoscaler.why_story import Story, timeline
from autoscaler.why_unserved import nearest_pool

LINES = 50
"""Ledger lines about one thing: the newest ones tell."""
FAILED_AMONG = 20
"""While machines fail, one of the newest is such a one."""
_FAILURES = (EndReason.BOOT_TIMEOUT, EndReason.SELF_ENDED)
LONGEST_CHAIN = 12
"""Attempts at one piece of work; no pool allows so many."""


def outlook_of(view: DaemonView) -> Outlook:
    return Outlook(view.snapshot(), view.rules(), view.blocked(), view.now())


# --------------------------------------------------------------------------- jobs


async def job_story_document(view: DaemonView, job: Job, outlook: Outlook) -> Document:
    """All about a job: its row, why, when, and the story of all attempts."""
    story = await _story(view, job)
    told = await _answer(view, job, outlook, story)
    near = nearest_pool(job, outlook.rules) if job.pool is None else None
    return {
        **job_document(job),
        **_answer_fields(told),
        "nearest": {"pool": near.pool, "missing": list(near.missing), "repo_served": near.is_repo_served}
        if near is not None
        else None,
        "chain": [_attempt_document(one) for one in story.chain],
        "timeline": [timeline_document(line) for line in timeline(story)],
    }


async def job_why_document(view: DaemonView, job: Job) -> Document:
    """The answer alone."""
    told = await _answer(view, job, outlook_of(view), await _story(view, job))
    return {"id": job.id, "state": job.state.value, **_answer_fields(told)}


def estimate_fields(start: Estimate) -> Document:
    return {
        "estimated_start": instant_or_none(start.at),
        "estimated_start_p95": instant_or_none(start.by),
        "estimated_start_note": start.note,
    }


def _answer_fields(told: Answer) -> Document:
    spill = told.spill
    spilled = {"since": instant(spill.since), "reason": spill.reason, "instance": spill.machine} if spill else None
    return {
        "why": told.sentence,
        **estimate_fields(told.start),
        "advice": told.advice,
        "spilled": spilled,
        "expected_instance": told.expected,
    }


def _attempt_document(job: Job) -> Document:
    return {
        "id": job.id,
        "attempt": job.attempt,
        "state": job.state.value,
        "conclusion": job.conclusion.value if job.conclusion else None,
        "instance": job.instance,
        "queued_at": instant(job.queued_at),
        "started_at": instant_or_none(job.started_at),
        "finished_at": instant_or_none(job.finished_at),
    }


async def _answer(view: DaemonView, job: Job, outlook: Outlook, story: Story) -> Answer:
    machine = outlook.expected.get(job.id)
    if machine is not None:
        moves: Sequence[InstanceMove] = await view.store.instance_moves(machine.id)
    else:
        moves = story.moves.get(job.instance, ()) if job.instance is not None else ()
    taken = story.interruptions.get(job.instance) if job.instance is not None else None
    newest = story.chain[-1]
    failed = await _failed(view, job.pool) if job.pool is not None and are_boots_failing(job, outlook) else None
    latest = newest if newest.id != job.id else None
    return answer(job, outlook, machine_moves=moves, taken=taken, latest=latest, failed=failed)


async def _failed(view: DaemonView, pool: PoolName) -> Instance | None:
    """The pool's last machine that ended without being of any use."""
    lately = await view.store.recent_instances(limit=FAILED_AMONG, pool=pool)
    return next((row for row in lately if row.ending in _FAILURES and row.job is None), None)


async def _story(view: DaemonView, job: Job) -> Story:
    chain = await _chain(view, job)
    machines = dict.fromkeys(one.instance for one in chain if one.instance is not None)
    interruptions = {name: taken for name in machines if (taken := await _taken(view, name)) is not None}
    return Story(
        chain=chain,
        moves={name: await view.store.instance_moves(name) for name in machines},
        ledger=await _ledger(view, [*(one.id for one in chain), *machines]),
        interruptions=interruptions,
    )


async def _chain(view: DaemonView, job: Job) -> list[Job]:
    """All attempts at the same work, oldest first."""
    chain = [job]
    while len(chain) < LONGEST_CHAIN and (before := chain[0].predecessor) is not None:
        earlier = await job_of(view, before)
        if earlier is None or earlier in chain:
            break
        chain.insert(0, earlier)
    while len(chain) < LONGEST_CHAIN and chain[-1].state is JobState.REQUEUED:
        later = await _successor(view, chain[-1])
        if later is None or later in chain:
            break
        chain.append(later)
    return chain


async def _successor(view: DaemonView, job: Job) -> Job | None:
    """The job that runs this one's work again. Not every forge says at once which it will be: it says then of whom it
    is the successor."""
    if job.successor is not None and (named := await job_of(view, job.successor)) is not None:
        return named
    return next((one for one in await run_of(view, job) if one.predecessor == job.id), None)


async def _taken(view: DaemonView, name: InstanceId) -> Interruption | None:
    return view.snapshot().interruptions.get(name) or await view.store.interruption(name)


async def _ledger(view: DaemonView, subjects: Sequence[str]) -> Mapping[str, Sequence[LedgerEntry]]:
    found = {}
    for subject in subjects:
        lines = await view.store.ledger(limit=LINES, subject=subject)
        found[subject] = [entry for _, entry in reversed(lines)]
    return found


# --------------------------------------------------------------------------- machines


async def machine_story_document(view: DaemonView, row: Instance) -> Document:
    """All about a machine: its row, its job, who ended it and on what evidence, its story."""
    moves = await view.store.instance_moves(row.id)
    decisions = await view.store.ledger(limit=LINES, subject=row.id)
    story = await _machine_story(view, row, moves, [entry for _, entry in reversed(decisions)])
    return {
        **instance_document(row, view.now()),
        **_machine_fields(machine_answer(story, view.now())),
        "served": job_document(story.job) if story.job else None,
        "interruption": interruption_document(story.taken) if story.taken else None,
        "history": [move_document(move) for move in moves],
        "timeline": [timeline_document(line) for line in machine_timeline(story)],
        "ledger": [ledger_document(seq, entry) for seq, entry in decisions],
    }


async def machine_why_document(view: DaemonView, row: Instance) -> Document:
    moves = await view.store.instance_moves(row.id)
    decisions = await view.store.ledger(limit=LINES, subject=row.id)
    story = await _machine_story(view, row, moves, [entry for _, entry in reversed(decisions)])
    told = machine_answer(story, view.now())
    return {"id": row.id, "state": row.state.value, **_machine_fields(told)}


def _machine_fields(told: MachineAnswer) -> Document:
    return {
        "why": told.sentence,
        "ended_by": told.ended_by.value if told.ended_by is not None else None,
        "evidence": [{"at": instant(one.at), "source": one.source, "text": one.text} for one in told.evidence],
    }


async def _machine_story(
    view: DaemonView, row: Instance, moves: Sequence[InstanceMove], ledger: Sequence[LedgerEntry]
) -> MachineStory:
    job = await job_of(view, row.job) if row.job is not None else None
    return MachineStory(row=row, moves=moves, ledger=ledger, taken=await _taken(view, row.id), job=job)
