"""Which pool serves a job, and why none does.

Pure. A pool serves a job when it lists the job's forge and repo and has all of its labels. Among those the most
specific one wins: fewest labels beyond the job's, then the repo pattern that says most, then priority, then name.
Two kinds of label need no configuration: `self-hosted`, which GitHub workflows write out of habit, and a binding
label `run-<run id>`, with which a job asks for a runner that only its own run can take.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
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
    nearest: tuple[int, str] | None = None
    for pool in pools:
        if pool.forges and forge not in pool.forges:
            continue
        specificity = repo_specificity(repo, pool.repos)
        if specificity is None:
            continue
        missing = wanted.difference(pool.labels)
        if missing:
            words = f"{', '.join(sorted(missing))} (pool {pool.name} is nearest)"
            if nearest is None or (len(missing), words) < nearest:
                nearest = (len(missing), words)
            continue
        served.append((len(pool.labels) - len(wanted), -specificity, -pool.priority, pool.name, pool))
    if served:
        return Match(pool=min(served)[4].name)
    is_hosted = bool(wanted) and all(HOSTED.match(label) for label in wanted) and len(asked) == len(labels)
    if nearest is None:
        return Match(pool=None, reason=f"no pool serves {repo}", is_hosted=is_hosted)
    return Match(pool=None, reason=f"no pool that serves {repo} has the label {nearest[1]}", is_hosted=is_hosted)
