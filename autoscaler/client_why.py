"""What `autoscaler why` prints for people: one job with its story, the jobs of a run, or a machine. Pure."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from autoscaler.client_text import Document, Palette, clean, instant
from autoscaler.why_words import ago, sentence


def why_text(found: Document, palette: Palette) -> str:
    """The answer to one question: documents of /api/v1/why in, text out."""
    jobs = found["jobs"]
    if found["instance"] is not None:
        return "\n".join(_machine_lines(found["instance"], palette))
    if len(jobs) == 1:
        return "\n".join(_job_lines(jobs[0], palette))
    return _run_text(jobs, found["total"], palette)


def _job_lines(job: Document, palette: Palette) -> Iterator[str]:
    """One sentence, when and what to do, what it is about, the timeline of all attempts."""
    yield palette.strong(clean(job["why"]))
    if starts := _start_text(job):
        yield starts
    if job["advice"]:
        yield f"-> {clean(job['advice'])}"
    if job["spilled"]:
        spilled = job["spilled"]
        since = f"{instant(spilled['since']):%H:%M:%S} UTC"
        yield f"On demand instead of spot since {since} {clean(spilled['reason'])}".rstrip(" .") + "."
    yield ""
    yield f"{clean(job['name'])} of {clean(job['repo'])}, run {clean(job['run_id'])}, {job['state']}"
    pool = f"pool {job['pool']}" if job["pool"] else "no pool"
    yield palette.quiet(f"{job['id']}  {pool}  [{clean(', '.join(job['labels']))}]")
    if job["url"]:
        yield palette.quiet(clean(job["url"]))
    if job["nearest"]:
        yield _nearest_text(job["nearest"], clean(job["repo"]))
    yield ""
    yield from _timeline_lines(job["timeline"], has_attempts=len(job["chain"]) > 1)


def _start_text(job: Document) -> str:
    """When it starts; "" for a job that does not wait."""
    at, by, note = job["estimated_start"], job["estimated_start_p95"], clean(job["estimated_start_note"])
    if at is None:
        return f"When it starts is not known: {note}." if note else ""
    late = f", by {instant(by):%H:%M:%S} in 95 of 100 cases" if by is not None else ""
    return f"It starts at about {instant(at):%H:%M:%S} UTC{late} ({note})."


def _timeline_lines(timeline: Sequence[Document], *, has_attempts: bool) -> Iterator[str]:
    first: datetime | None = None
    for line in timeline:
        at = instant(line["at"])
        first = first or at
        after = f"+{ago(at - first)}" if (at - first).total_seconds() >= 1 else ""
        attempt = f"#{line['attempt']}  " if has_attempts else ""
        yield f"{at:%H:%M:%S}  {after:>12}  {attempt}{clean(line['text'])}"


def _nearest_text(nearest: Document, repo: str) -> str:
    lacks = f"it lacks {', '.join(nearest['missing'])}" if nearest["missing"] else "it has all of the labels"
    serves = "" if nearest["repo_served"] else f", and does not serve {repo}"
    return sentence(f"nearest is pool {nearest['pool']}: {clean(lacks)}{serves}")


def _run_text(jobs: Sequence[Document], total: int, palette: Palette) -> str:
    """Several jobs of one run, a sentence each."""
    wide = max(len(clean(job["name"])) for job in jobs)
    head = f"{clean(jobs[0]['repo'])}, run {clean(jobs[0]['run_id'])}: {total} jobs"
    lines = [f"{clean(job['name']):{wide}}  {job['state']:9}  {clean(job['why'])}" for job in jobs]
    if total > len(jobs):
        lines.append(palette.quiet(f"and {total - len(jobs)} more"))
    return "\n".join(
        [palette.strong(head), *lines, palette.quiet("The timeline of one: autoscaler why " + jobs[0]["id"])]
    )


def _machine_lines(machine: Document, palette: Palette) -> Iterator[str]:
    """Who ended it and on what evidence, or what it does."""
    yield palette.strong(clean(machine["why"]))
    yield ""
    place = machine["capacity_pool"]
    bought = f"{place['machine_type']} in {place['zone']}, {place['capacity_type']}" if place else machine["provider"]
    yield f"{machine['id']}  {machine['state']}  pool {machine['pool']}  {bought}"
    yield palette.quiet(f"cost so far {machine['cost_usd']:.4f} USD, at {machine['price_usd_hour']:.4f} an hour")
    if machine["provider_id"]:
        yield palette.quiet(f"{machine['provider']} calls it {clean(machine['provider_id'])}")
    if (job := machine["served"]) is not None:
        yield f"job {job['id']}: {clean(job['name'])} of {clean(job['repo'])}, {job['conclusion'] or job['state']}"
    if machine["evidence"]:
        yield ""
        yield "On this evidence:"
        for one in machine["evidence"]:
            yield f"{instant(one['at']):%H:%M:%S}  {one['source']:>12}  {clean(one['text'])}"
    yield ""
    yield from _timeline_lines(machine["timeline"], has_attempts=False)
