"""Seeded work for simulations: bursts of runs with stages, some of whose jobs fail genuinely."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from autoscaler.sandbox.workload import JobSpec, RunSpec

CANCELLED = 0.06
"""Share of runs that a person cancels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A run that a person starts at `at_s` on one of the forges, and perhaps cancels some seconds later."""

    at_s: float
    forge: str
    run: RunSpec
    cancel_after_s: float | None = None


def arrivals(
    dice: random.Random,
    *,
    jobs: int,
    until_s: float,
    repos: Sequence[tuple[str, str, Sequence[tuple[str, ...]]]],
) -> list[Arrival]:
    """About `jobs` jobs in runs before `until_s`. `repos` are (forge, repo, label sets to choose from)."""
    made: list[Arrival] = []
    count = 0
    while count < jobs:
        at_s = dice.uniform(0, until_s)
        for _ in range(dice.choice((1, 1, 2, 5))):  # bursts
            forge, repo, labels = dice.choice(repos)
            # Two of three pipelines run for a merge request, if they do at all.
            ref = f"refs/merge-requests/{len(made) + 1}/head" if len(made) % 3 and forge == "gl" else "main"
            run = replace(_run(dice, repo, labels), ref=ref)
            start_s, patience_s = at_s + dice.uniform(0, 2), dice.uniform(0.1, 120)
            cancel_after_s = patience_s if dice.random() < CANCELLED else None
            made.append(Arrival(at_s=start_s, forge=forge, run=run, cancel_after_s=cancel_after_s))
            count += len(run.jobs)
    return sorted(made, key=lambda arrival: (arrival.at_s, arrival.run.repo))


def _run(dice: random.Random, repo: str, label_sets: Sequence[tuple[str, ...]]) -> RunSpec:
    names = [f"build-{number}" for number in range(dice.choice((1, 1, 2, 3)))]
    first = [_job(dice, name, dice.choice(label_sets), ()) for name in names]
    later = [
        _job(dice, name, dice.choice(label_sets), tuple(names))
        for name in ("test", "deploy")[: dice.choice((0, 0, 1, 2))]
    ]
    return RunSpec(repo=repo, workflow="CI", jobs=(*first, *later))


def _job(dice: random.Random, name: str, labels: tuple[str, ...], needs: tuple[str, ...]) -> JobSpec:
    duration_s = min(240.0, max(2.0, math.exp(dice.gauss(3.3, 0.9))))
    return JobSpec(
        key=name,
        name=name,
        labels=labels,
        needs=needs,
        duration_s=round(duration_s, 1),
        fails=dice.random() < 0.06,
    )
