"""Replay of a job trace (CSV, gzip allowed; the simulation's input format) by the demo's forges.

A forge takes a run as a whole, while a trace may submit the jobs of one run at different times. So each group of
jobs that hang together by `needs` is submitted at the time of its first job; groups of one run that come at the
same time stay together. Repos, names and labels are kept; jobs sleep for their duration divided by the speed.
"""

import csv
import gzip
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from autoscaler.sandbox.demo_workload import Submission
from autoscaler.sandbox.workload import JobSpec, RunSpec

COLUMNS = (
    "submitted_at", "job_id", "run_id", "forge", "repo", "workflow", "name", "labels", "duration_s", "needs",
)  # fmt: skip
FORGES = ("github", "gitlab")


class TraceError(ValueError):
    """A job trace that cannot be read; the text names file and line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    line: int
    submitted_at: float
    job_id: str
    run_id: str
    forge: str
    repo: str
    workflow: str
    name: str
    labels: tuple[str, ...]
    duration_s: float
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What to submit, and how many jobs the whole trace has."""

    submissions: Sequence[Submission]
    trace_jobs: int

    @property
    def jobs(self) -> int:
        return sum(len(one.run.jobs) for one in self.submissions)


def replayed(trace: Path, *, speed: float, duration_s: float) -> Replay:
    """What of a trace comes within `duration_s`. The whole trace is checked. Raises TraceError."""
    rows = list(_rows(trace))
    if not rows:
        raise TraceError(f"{trace}: there is no job in it")
    runs: dict[tuple[str, str, str], list[_Row]] = defaultdict(list)
    for row in rows:
        runs[row.forge, row.repo, row.run_id].append(row)
    found = []
    for run_rows in runs.values():
        for at_s, group in _groups(trace, run_rows):
            if at_s / speed < duration_s:
                found.append(_submission(at_s / speed, group, speed))
    return Replay(submissions=sorted(found, key=lambda one: one.at_s), trace_jobs=len(rows))


def _submission(at_s: float, rows: Sequence[_Row], speed: float) -> Submission:
    jobs = tuple(
        JobSpec(
            key=row.job_id,
            name=row.name or row.job_id,
            labels=row.labels,
            script=(f"sleep {row.duration_s / speed:.3f}",),
            needs=row.needs,
            duration_s=row.duration_s / speed,
        )
        for row in rows
    )
    first = rows[0]
    run = RunSpec(repo=first.repo, workflow=first.workflow or "ci", jobs=jobs)
    return Submission(at_s=at_s, forge=first.forge, run_id=first.run_id, run=run)


def _groups(trace: Path, rows: Sequence[_Row]) -> Iterable[tuple[float, list[_Row]]]:
    """The jobs of one run by when they are submitted; what hangs together comes together. Raises TraceError."""
    by_id = {row.job_id: row for row in rows}
    _check_needs(trace, by_id)
    leader = {row.job_id: row.job_id for row in rows}

    def find(key: str) -> str:
        while leader[key] != key:
            leader[key] = key = leader[leader[key]]
        return key

    for row in rows:
        for need in row.needs:
            leader[find(row.job_id)] = find(need)
    starts: dict[str, float] = {}
    for row in rows:
        group = find(row.job_id)
        starts[group] = min(starts.get(group, math.inf), row.submitted_at)
    together: dict[float, list[_Row]] = defaultdict(list)
    for row in rows:
        together[starts[find(row.job_id)]].append(row)
    return sorted(together.items())


def _check_needs(trace: Path, by_id: Mapping[str, _Row]) -> None:
    done: set[str] = set()
    left = dict(by_id)
    while left:
        ready = [key for key, row in left.items() if done.issuperset(row.needs)]
        for key in ready:
            done.add(key)
            del left[key]
        if ready:
            continue
        row = min(left.values(), key=lambda row: row.line)
        unknown = [need for need in row.needs if need not in by_id]
        what = f"needs {unknown[0]}, which run {row.run_id} does not have" if unknown else "needs go in a circle"
        raise TraceError(f"{trace}, line {row.line}: {what}")


def _opened(trace: Path) -> IO[str]:
    if trace.suffix == ".gz":
        return gzip.open(trace, "rt", encoding="utf-8", newline="")
    return trace.open(encoding="utf-8", newline="")


def _rows(trace: Path) -> Iterator[_Row]:
    line = 1
    try:
        with _opened(trace) as file:
            reader = csv.DictReader(file, strict=True)
            if absent := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise TraceError(f"{trace}, line 1: the header has no column {', '.join(absent)}")
            seen: set[str] = set()
            last_s = 0.0
            for fields in reader:
                line = reader.line_num
                row = _parse(fields, line=line, seen=seen, last_s=last_s)
                last_s = row.submitted_at
                seen.add(row.job_id)
                yield row
    except TraceError:
        raise
    except UnicodeDecodeError as error:
        raise TraceError(f"{trace}, after line {line}: not UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"{trace}: {error}") from error
    except csv.Error as error:
        raise TraceError(f"{trace}, line {line + 1}: {error}") from error
    except ValueError as error:
        raise TraceError(f"{trace}, line {line}: {error}") from error


def _parse(fields: Mapping[str, str | None], *, line: int, seen: set[str], last_s: float) -> _Row:
    """One row. Raises ValueError with what is wrong."""
    if absent := [name for name in COLUMNS if fields.get(name) is None]:
        raise ValueError(f"there is no {', '.join(absent)}: the row is too short")
    value = {name: (fields[name] or "").strip() for name in COLUMNS}
    submitted_at, duration_s = _number(value, "submitted_at"), _number(value, "duration_s")
    if submitted_at < last_s:
        raise ValueError(f"submitted_at {submitted_at:g} is before the row above: rows must ascend")
    if duration_s <= 0:
        raise ValueError("duration_s must be above 0")
    if value["forge"] not in FORGES:
        raise ValueError(f"forge {value['forge']!r} must be {' or '.join(FORGES)}")
    owner, _, name = value["repo"].partition("/")
    if not owner or not name:
        raise ValueError(f"repo {value['repo']!r} must be owner/name or group/project")
    for key in ("job_id", "run_id"):
        if not value[key]:
            raise ValueError(f"{key} is empty")
    if value["job_id"] in seen:
        raise ValueError(f"job_id {value['job_id']} occurs twice")
    return _Row(
        line=line,
        submitted_at=submitted_at,
        job_id=value["job_id"],
        run_id=value["run_id"],
        forge=value["forge"],
        repo=value["repo"],
        workflow=value["workflow"],
        name=value["name"],
        labels=tuple(value["labels"].split()),
        duration_s=duration_s,
        needs=tuple(dict.fromkeys(value["needs"].split())),
    )


def _number(value: Mapping[str, str], key: str) -> float:
    try:
        number = float(value[key])
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{key} {value[key]!r} must be a number, 0 or more")
    return number
