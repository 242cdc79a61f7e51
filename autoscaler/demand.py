"""Which pool serves a job, and why none does.

Pure. A pool serves a job when it lists the job's forge and repo and has all of its labels. Among those the most
specific one wins: fewest labels beyond the job's, then the repo pattern that says most, then priority, then name.
Two kinds of label need no configuration: `self-hosted`, which GitHub workflows write out of habit, and a binding
label `run-<run id>`, with which a job asks for a runner that only its own run can take.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache

from autoscaler.model import Pool
from autoscaler.spi import ForgeName, Labels, PoolName

HOSTED = re.compile(r"(ubuntu|windows|macos)-[a-z0-9.\-]+$")
"""Labels of GitHub's own machines. A job with only such labels is not ours unless a pool lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The pool that serves a job, or None with the reason; `is_hosted`: the forge's own machines will run it."""

    pool: PoolName | None
    reason: str = ""
    is_hosted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NearestPool:
    """The pool that comes closest to serving a job: what of the job's labels it lacks, whether it serves the repo.
    `elsewhere` has all of the labels, but does not serve the repo."""

    pool: PoolName
    missing: Labels
    is_repo_served: bool
    elsewhere: PoolName | None = None

    def aside(self, repo: str) -> str:
        """Half a sentence about `elsewhere`; empty where there is none."""
        if self.elsewhere is None:
            return ""
        return f"pool {self.elsewhere} has {'it' if len(self.missing) == 1 else 'them'} but does not serve {repo}"


@lru_cache(maxsize=65536)
def repo_specificity(repo: str, patterns: Labels) -> int | None:
    """How closely patterns name a repo: the literal characters of the best one; None when the repo is not served.

    A pattern that begins with "!" excludes, wherever it stands. No pattern at all serves every repo, as "*" does.
    """
    name = repo.lower()
    best: int | None = None if any(not pattern.startswith("!") for pattern in patterns) else 0
    for pattern in patterns:
        if pattern.startswith("!"):
            if fnmatchcase(name, pattern[1:].lower()):
                return None
        elif fnmatchcase(name, pattern.lower()):
            best = max(best or 0, len(pattern) - pattern.count("*"))
    return best


def asked_labels(labels: Labels, *, run_id: str) -> Labels:
    """The labels of a job that a pool must have."""
    return tuple(label for label in labels if label not in ("self-hosted", f"run-{run_id}"))


def match_pool(*, forge: ForgeName, repo: str, labels: Labels, run_id: str, pools: Iterable[Pool]) -> Match:
    """The most specific pool for a job, or one sentence on what is missing."""
    asked = asked_labels(labels, run_id=run_id)
    wanted = frozenset(asked)
    served: list[tuple[int, int, int, str, Pool]] = []
    pools = tuple(pools)
    for pool in pools:
        if pool.forges and forge not in pool.forges:
            continue
        specificity = repo_specificity(repo, pool.repos)
        if specificity is None or not wanted.issubset(pool.labels):
            continue
        served.append((len(pool.labels) - len(wanted), -specificity, -pool.priority, pool.name, pool))
    if served:
        return Match(pool=min(served)[4].name)
    is_hosted = bool(wanted) and all(HOSTED.match(label) for label in wanted) and len(asked) == len(labels)
    near = nearest_pool(forge=forge, repo=repo, labels=labels, run_id=run_id, pools=pools)
    if near is None or not near.is_repo_served:
        return Match(pool=None, reason=f"no pool serves {repo}", is_hosted=is_hosted)
    words = "; ".join(part for part in (f"pool {near.pool} is nearest", near.aside(repo)) if part)
    reason = f"no pool that serves {repo} has the label {', '.join(near.missing)} ({words})"
    return Match(pool=None, reason=reason, is_hosted=is_hosted)


def nearest_pool(
    *, forge: ForgeName, repo: str, labels: Labels, run_id: str, pools: Iterable[Pool]
) -> NearestPool | None:
    """Of the pools that serve the repo, else of all pools of the forge, the one that lacks the fewest of a job's
    labels; None where the forge has no pool."""
    asked = frozenset(asked_labels(labels, run_id=run_id))
    found = [
        NearestPool(
            pool=pool.name,
            missing=tuple(sorted(asked.difference(pool.labels))),
            is_repo_served=repo_specificity(repo, pool.repos) is not None,
        )
        for pool in pools
        if not pool.forges or forge in pool.forges
    ]
    near = min(found, key=lambda one: (not one.is_repo_served, len(one.missing), one.pool), default=None)
    if near is None or not near.missing or not near.is_repo_served:
        return near
    elsewhere = min((one.pool for one in found if not one.missing and not one.is_repo_served), default=None)
    return replace(near, elsewhere=elsewhere)
