"""What the demo's forges are asked to run: a bursty, seeded workload with stages, or a replayed job trace.

Three repos that see different pools:

    acme/shop   (GitHub)  linux-small and linux-large
    acme/api    (GitHub)  linux-small alone: a job of it that asks for `large` is shown as unserved
    tools/etl   (GitLab)  data alone

Pure: the same seed gives the same submissions.
"""

import csv
import gzip
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.workload import JobSpec, RunSpec

SMALL = ("self-hosted", "linux", "x64")
LARGE = ("self-hosted", "linux", "x64", "large")
DATA = ("data", "linux")
GITHUB_REPOS = ("acme/shop", "acme/api")
GITLAB_REPOS = ("tools/etl",)


class TraceError(ValueError):
    """A job trace that cannot be read; the text names the line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A run that reaches a forge `at_s` seconds after the start."""

    at_s: float
    forge: str
    run: RunSpec


def generated(seed: int, duration_s: float) -> list[Submission]:
    """Bursts of runs about every 12 s, quiet between them, single runs any time; jobs of 1 to 15 s."""
    dice = random.Random(f"{seed}/workload")  # noqa: S311 - a repeatable workload, not a secret
    found: list[Submission] = []
    at_s = 0.5
    while at_s < duration_s:
        for _ in range(dice.choice((1, 1, 2, 3, 4))):
            found.append(_run(dice, at_s + dice.uniform(0, 1.5), len(found)))
        at_s += dice.expovariate(1 / 9.0) + 3.0
    return sorted((one for one in found if one.at_s < duration_s), key=lambda one: one.at_s)


def _run(dice: random.Random, at_s: float, number: int) -> Submission:
    match dice.choice(("shop", "shop", "api", "etl", "etl")):
        case "shop":
            return Submission(at_s=at_s, forge="github", run=_shop(dice, number))
        case "api":
            jobs = tuple(_job(dice, f"test-{part}", SMALL) for part in range(dice.choice((1, 2))))
            return Submission(at_s=at_s, forge="github", run=RunSpec(repo="acme/api", workflow="ci", jobs=jobs))
        case _:
            first = _job(dice, "extract", DATA)
            rest = tuple(_job(dice, f"load-{part}", DATA, needs=("extract",)) for part in range(dice.choice((1, 2))))
            return Submission(
                at_s=at_s, forge="gitlab", run=RunSpec(repo="tools/etl", workflow="etl", jobs=(first, *rest))
            )


def _shop(dice: random.Random, number: int) -> RunSpec:
    """build -> a matrix of tests -> package on a large machine; now and then a test fails for real."""
    build = _job(dice, "build", SMALL)
    fails = dice.random() < 0.1
    tests = tuple(
        _job(dice, f"test-{part}", SMALL, needs=("build",), fails=fails and part == 0)
        for part in range(dice.choice((2, 3)))
    )
    package = _job(dice, "package", LARGE, needs=tuple(test.key for test in tests))
    return RunSpec(repo="acme/shop", workflow="ci", jobs=(build, *tests, package), ref=f"feature-{number}")


def _job(
    dice: random.Random, key: str, labels: tuple[str, ...], *, needs: tuple[str, ...] = (), fails: bool = False
) -> JobSpec:
    seconds = round(min(15.0, 1.0 + dice.expovariate(1 / 3.0)), 1)
    script = (f"echo {key} starts", f"sleep {seconds}", "false" if fails else f"echo {key} is done")
    return JobSpec(key=key, name=key, labels=labels, script=script, needs=needs, duration_s=seconds, fails=fails)


def replayed(trace: Path, speed: float) -> list[Submission]:
    """The runs of a job trace (specs: simulation, section 2), time divided by `speed`; jobs really sleep that long.

    A run is submitted when its first job is; later submissions of the same run come with its stages. Repos keep
    their names. Raises TraceError with the line that is wrong.
    """
    rows: dict[tuple[str, str, str], list[tuple[float, JobSpec, str]]] = defaultdict(list)
    for line, row in _rows(trace):
        try:
            seconds, submitted = float(row["duration_s"]), float(row["submitted_at"])
            forge, labels = row["forge"], tuple(row["labels"].split())
            if forge not in ("github", "gitlab") or seconds <= 0 or submitted < 0 or "/" not in row["repo"]:
                raise ValueError("forge must be github or gitlab, duration_s > 0, submitted_at >= 0, repo owner/name")
            scaled = round(seconds / speed, 3)
            job = JobSpec(
                key=row["job_id"],
                name=row["name"],
                labels=labels,
                script=(f"sleep {scaled}",),
                needs=tuple(row["needs"].split()),
                duration_s=scaled,
            )
        except (KeyError, ValueError) as error:
            raise TraceError(f"{trace}, line {line}: {error}") from error
        rows[forge, row["repo"], row["run_id"]].append((submitted / speed, job, row["workflow"]))
    found = []
    for (forge, repo, _), jobs in rows.items():
        known = {job.key for _, job, _ in jobs}
        specs = tuple(
            JobSpec(
                key=job.key,
                name=job.name,
                labels=job.labels,
                script=job.script,
                needs=tuple(need for need in job.needs if need in known),
                duration_s=job.duration_s,
            )
            for _, job, _ in jobs
        )
        run = RunSpec(repo=repo, workflow=jobs[0][2], jobs=specs)
        found.append(Submission(at_s=jobs[0][0], forge=forge, run=run))
    return sorted(found, key=lambda one: one.at_s)


def _rows(trace: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        opened = gzip.open(trace, "rt", newline="") if trace.suffix == ".gz" else trace.open(newline="")
        with opened as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                yield number, {key: value or "" for key, value in row.items() if key is not None}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{trace}: {error}") from error
