"""Jobs that no pool serves: what is missing, and what somebody has to change. Pure."""

from collections import Counter
from collections.abc import Sequence

from autoscaler.demand import NearestPool
from autoscaler.demand import nearest_pool as nearest_of
from autoscaler.model import Job, Rules
from autoscaler.plan_unservable import GRACE
from autoscaler.why_outlook import Outlook
from autoscaler.why_words import listed, sentence

LOOKED_AT = 200
"""A matrix of thousands lacks the same label; the oldest jobs say which."""


def nearest_pool(job: Job, rules: Rules) -> NearestPool | None:
    """The pool that comes closest to serving a job, as `demand` says it."""
    return nearest_of(forge=job.forge, repo=job.repo, labels=job.labels, run_id=job.run_id, pools=rules.pools.values())


def why_unserved(job: Job, outlook: Outlook) -> str:
    if job.unserved:
        return sentence(job.unserved)
    near = nearest_pool(job, outlook.rules)
    if near is None:
        return f"No pool serves {job.forge}."
    if near.missing:
        lacks = f"lacks {', '.join(near.missing)}"
        aside = near.aside(job.repo)
        if aside:
            return f"No pool that serves {job.repo} has all of its labels: the nearest, {near.pool}, {lacks}; {aside}."
        unserved = "" if near.is_repo_served else f" and does not serve {job.repo}"
        return f"No pool has all of its labels: the nearest, {near.pool}, {lacks}{unserved}."
    return f"Pool {near.pool} has its labels but does not serve {job.repo}."


def unserved_trouble(jobs: Sequence[Job], rules: Rules) -> str:
    """What operators are told of jobs that no pool serves, oldest first; "" without any. It names what most of them
    lack, so that one look says whether a workflow or the configuration is wrong."""
    if not jobs:
        return ""
    lacks: Counter[str] = Counter()
    for job in jobs[:LOOKED_AT]:
        near = nearest_pool(job, rules)
        if near is None:
            lacks[f"no pool serves {job.forge}"] += 1
        elif near.missing:
            lacks[f"pool {near.pool} is nearest and lacks {', '.join(near.missing)}"] += 1
        else:
            lacks[f"pool {near.pool} does not serve {job.repo}"] += 1
    told = "; ".join(what for what, _ in lacks.most_common(2))
    count = "1 job is" if len(jobs) == 1 else f"{len(jobs)} jobs are"
    return f"{count} served by no pool: {told}; `autoscaler why {jobs[0].id}` says what to change"


def advice_of(job: Job, outlook: Outlook) -> str:
    """What to change, in the workflow or in the configuration, and what happens if nobody does."""
    near = nearest_pool(job, outlook.rules)
    if near is None:
        return f'Configure a pool for it: a [[pool]] with "{job.forge}" in its forges. {_otherwise(job, None, outlook)}'
    pool = outlook.rules.pools[near.pool]
    ways = []
    if near.missing:
        has = f"{'labels' if len(pool.labels) > 1 else 'label'} {', '.join(pool.labels)}" if pool.labels else "no label"
        ways.append(f"take {listed(list(near.missing))} off the job's labels (pool {pool.name} has the {has})")
        ways.append(f"add {listed(list(near.missing))} to the labels of a pool whose machines can run it")
    if not near.is_repo_served:
        ways.append(f"add {job.repo} to the repos of pool {pool.name}")
    elif near.elsewhere is not None:
        ways.append(f"add {job.repo} to the repos of pool {near.elsewhere}")
    return f"{sentence(', or '.join(ways))} {_otherwise(job, near, outlook)}"


def _otherwise(job: Job, near: NearestPool | None, outlook: Outlook) -> str:
    pool = outlook.rules.pools.get(near.pool) if near is not None else None
    if pool is not None and pool.cancels_unservable:
        minutes = GRACE.seconds // 60
        return (
            f"Otherwise its run is cancelled after {minutes} minutes, unless another job of it can be served: pool "
            f'{pool.name} has unservable = "cancel_run".'
        )
    return (
        f'Otherwise it waits until {job.forge} gives it up; unservable = "cancel_run" in the nearest pool would cancel '
        "its run instead."
    )
