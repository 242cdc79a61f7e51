"""What people are told when a job of theirs lost its machine: the words, as a pure function of what is on record.

Nothing here sends anything (`outbox` keeps what is to be said, `apply_tell` says it). Names of jobs, labels and
machines are strangers' text: in Markdown they stand in code spans, in which nothing of them is read as markup, a
mention or a command. Addresses and secrets never get here.
"""

from datetime import datetime

from autoscaler.model import Instance, Interruption, Job, Pool
from autoscaler.spi import CapacityType, ForgeTraits, Telling

NAME_LIMIT = 100
_SOURCES = {
    "agent": "our agent on the machine was told so by the cloud",
    "queue": "the cloud's notice",
    "operation": "the cloud's record of the operation",
    "listing": "the cloud's list of machines",
    "heartbeat": "our agent fell silent, and the cloud confirmed that the machine is gone",
    "game_day": "a game day of whoever runs the CI machines",
}


def telling_key(job: Job) -> str:
    """The same for every try to tell of one loss, and another one for each loss."""
    return f"{job.id}/{job.instance or job.runner_name}"


def telling_of(
    job: Job,
    *,
    loss: Interruption | None,
    machine: Instance | None,
    pool: Pool | None,
    traits: ForgeTraits,
    refusal: str | None,
) -> Telling:
    """What to say about a lost job. `refusal` is why it is not queued again, None if it is."""
    name = plain(job.name)
    facts = [
        ("Machine", _machine(job, loss, machine)),
        ("When", _when(job, loss)),
        ("How we know", _evidence(loss)),
        ("Attempt", f"{job.attempt} of {pool.requeue_attempts}" if pool is not None else f"{job.attempt}"),
        ("What happens next", _next(traits, refusal)),
    ]
    if loss is not None and loss.hook_s is not None:
        facts.insert(3, ("What was kept", f"the image's program for interruptions ran for {loss.hook_s:.1f} s"))
    if link := _link(job.url):
        facts.append(("Job", link))
    opening = (
        f"The machine that ran {code(name)} {_what(loss)} before the job was done. This is infrastructure, not your "
        "test: it says nothing about your change."
    )
    lines = [opening, "", *(f"- **{word}**: {text}" for word, text in facts)]
    return Telling(
        key=telling_key(job),
        forge=job.forge,
        repo=job.repo,
        run_id=job.run_id,
        forge_job_id=job.forge_job_id,
        job_name=name,
        commit=job.commit,
        url=job.url,
        title=_title(job, pool, refusal),
        text="\n".join(lines),
    )


def _title(job: Job, pool: Pool | None, refusal: str | None) -> str:
    """All that a commit status has room for."""
    attempt = f"attempt {job.attempt} of {pool.requeue_attempts}" if pool is not None else f"attempt {job.attempt}"
    follows = "is queued again" if refusal is None else "is not queued again"
    return f"Infrastructure, not your test: the machine was interrupted in {attempt}, and the job {follows}"


def plain(text: str) -> str:
    """One line of a stranger's text, shortened."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(line.split())
    return line if len(line) <= NAME_LIMIT else f"{line[: NAME_LIMIT - 1]}…"


def code(text: str) -> str:
    """A stranger's text for Markdown: a code span, which it cannot end."""
    return f"`{plain(text).replace('`', chr(39)) or '-'}`"


def _what(loss: Interruption | None) -> str:
    return "was lost" if loss is None else "was taken back by its cloud"


def _machine(job: Job, loss: Interruption | None, machine: Instance | None) -> str:
    id_ = machine.provider_id if machine is not None and machine.provider_id is not None else job.instance
    place = (loss.capacity_pool if loss is not None else None) or (machine.capacity_pool if machine else None)
    provider = loss.provider if loss is not None else machine.provider if machine is not None else None
    words = []
    if place is not None:
        words += [code(place.machine_type), f"zone {code(place.zone)}"]
        words.append("on demand" if place.capacity_type is CapacityType.ON_DEMAND else "spot")
    if provider is not None:
        words.append(f"provider {code(provider)}")
    described = f" ({', '.join(words)})" if words else ""
    return f"{code(id_ or job.runner_name)}{described}"


def _when(job: Job, loss: Interruption | None) -> str:
    if loss is None:
        return f"found at {_instant(job.lost_at)}" if job.lost_at is not None else "not known to the second"
    if not loss.is_announced:
        return f"{_instant(loss.cutoff_at or loss.noticed_at)}, without a warning"
    until = f", to be taken by {_instant(loss.reclaim_at)}" if loss.reclaim_at is not None else ""
    return f"announced at {_instant(loss.noticed_at)}{until}; the job did not end in the time left"


def _instant(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"


def _evidence(loss: Interruption | None) -> str:
    if loss is None:
        return "the machine is gone, and the job had not ended"
    return "; ".join(_SOURCES.get(source, code(source)) for source in loss.sources)


def _next(traits: ForgeTraits, refusal: str | None) -> str:
    if refusal is None:
        when = "at once" if traits.requeues_at_once else "as soon as the other jobs of this run have ended"
        return f"it is queued again {when}. There is nothing to do for you."
    kind, _, why = refusal.partition(": ")
    match kind:
        case "opted_out":
            again = "Run it again by hand once it is safe to do so"
        case "attempts":
            again = "Run it again by hand; if this happens often, tell those who run the CI machines"
        case _:
            again = "Tell those who run the CI machines, then run it again by hand"
    return f"it is not queued again, because {_because(kind, why)}. {again}."


def _because(kind: str, why: str) -> str:
    match kind:
        case "opted_out":
            return f"it opted out of that ({code(why)})"
        case "attempts":
            return f"its attempts are used up ({code(why)})"
        case _:
            return code(why or kind)


def _link(url: str) -> str:
    """An address as the forge gave it, unless it holds what could end the link."""
    is_clean = url.startswith(("https://", "http://")) and not any(letter in url for letter in "<>()[]`\"' \t\n\\")
    return f"<{url}>" if is_clean else ""
