"""The demo's generated workload: bursty, seeded, in stages.

Three repos that see different pools:

    acme/shop   (GitHub)  linux-small and linux-large
    acme/api    (GitHub)  linux-small alone: its one job that asks for `large` is served by no pool
    tools/etl   (GitLab)  data alone

Pure: the same seed and duration give the same submissions.
"""

import random
from dataclasses import dataclass

from autoscaler.sandbox.workload import JobSpec, RunSpec

SMALL = ("self-hosted", "linux", "x64")
LARGE = ("self-hosted", "linux", "x64", "large")
DATA = ("data", "linux")
ONCE = "no-requeue"
"""The label of jobs with effects outside, which must never run twice by themselves: those that deploy or publish."""
GITHUB_REPOS = ("acme/shop", "acme/api")
GITLAB_REPOS = ("tools/etl",)
SHORTEST_S, LONGEST_S = 1.0, 15.0
DEPLOYS_S = 5.0
"""How long a deployment takes at least."""
UNSERVED_AT = 0.25
"""When, as a share of the duration, the job comes that no pool serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run that reaches a forge `at_s` seconds after the start. `run_id` is its name in the report."""

    at_s: float
    forge: str
    run_id: str
    run: RunSpec


def generated(seed: int, duration_s: float) -> list[Submission]:
    """Bursts of runs about every 9 s, quiet between them; jobs of 1 to 15 s. Each repo gets at least one run."""
    dice = random.Random(f"{seed}/workload")  # noqa: S311 - a repeatable workload, not a secret
    kinds = ["shop", "etl", "api"]
    found: list[Submission] = []
    at_s = 0.0
    while at_s < duration_s:
        for _ in range(3 if not found else dice.choice((1, 2, 2, 3, 4, 5))):
            kind = kinds.pop(0) if kinds else dice.choice(("shop", "shop", "api", "etl", "etl"))
            found.append(_submission(dice, kind, at_s + dice.uniform(0, min(1.5, duration_s / 10)), len(found)))
        at_s += 3.0 + min(12.0, dice.expovariate(1 / 7.0))
    found.append(_submission(dice, "bench", UNSERVED_AT * duration_s, len(found)))
    return sorted((one for one in found if one.at_s < duration_s), key=lambda one: one.at_s)


def _submission(dice: random.Random, kind: str, at_s: float, number: int) -> Submission:
    match kind:
        case "shop":
            forge, run = "github", _shop(dice, number)
        case "api":
            jobs = tuple(_job(dice, f"test-{part}", SMALL) for part in range(dice.choice((1, 2))))
            forge, run = "github", RunSpec(repo="acme/api", workflow="ci", jobs=jobs)
        case "bench":
            job = _job(dice, "bench", LARGE)
            forge, run = "github", RunSpec(repo="acme/api", workflow="bench", jobs=(job,))
        case _:
            first = _job(dice, "extract", DATA)
            rest = tuple(_job(dice, f"load-{part}", DATA, needs=("extract",)) for part in range(dice.choice((1, 2))))
            publish = _job(dice, "publish", (*DATA, ONCE), needs=tuple(job.key for job in rest), least_s=DEPLOYS_S)
            # Every other pipeline is a merge request's: people are told there what happened to its jobs.
            ref = f"refs/merge-requests/{number + 1}/head" if number % 2 else "main"
            forge, run = "gitlab", RunSpec(repo="tools/etl", workflow="etl", jobs=(first, *rest, publish), ref=ref)
    return Submission(at_s=at_s, forge=forge, run_id=f"{kind}-{number}", run=run)


def _shop(dice: random.Random, number: int) -> RunSpec:
    """build -> a matrix of tests -> package on a large machine -> deploy, once; now and then a test fails for real."""
    build = _job(dice, "build", SMALL)
    fails = dice.random() < 0.1
    tests = tuple(
        _job(dice, f"test-{part}", SMALL, needs=("build",), fails=fails and part == 0)
        for part in range(dice.choice((2, 3)))
    )
    package = _job(dice, "package", LARGE, needs=tuple(test.key for test in tests))
    deploy = _job(dice, "deploy", (*SMALL, ONCE), needs=(package.key,), least_s=DEPLOYS_S)
    return RunSpec(repo="acme/shop", workflow="ci", jobs=(build, *tests, package, deploy), ref=f"feature-{number}")


def _job(
    dice: random.Random,
    key: str,
    labels: tuple[str, ...],
    *,
    needs: tuple[str, ...] = (),
    fails: bool = False,
    least_s: float = SHORTEST_S,
) -> JobSpec:
    seconds = round(min(LONGEST_S, least_s + dice.expovariate(1 / 3.0)), 1)
    script = (f"echo {key} starts", f"sleep {seconds}", "false" if fails else f"echo {key} is done")
    return JobSpec(key=key, name=key, labels=labels, script=script, needs=needs, duration_s=seconds, fails=fails)
