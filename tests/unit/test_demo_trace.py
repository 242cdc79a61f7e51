"""Replaying a job trace: what is read, when it is submitted, and what a bad row is told."""

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

import pytest

from autoscaler.sandbox.demo_pools import pools_of_trace
from autoscaler.sandbox.demo_trace import COLUMNS, TraceError, replayed

GOOD = ("0", "j1", "r1", "github", "acme/shop", "ci", "build", "linux x64", "60", "")


def a_trace(tmp_path: Path, rows: Sequence[Sequence[str]], *, header: Sequence[str] = COLUMNS) -> Path:
    path = tmp_path / "trace.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def row(**changes: str) -> tuple[str, ...]:
    return tuple(changes.get(name, value) for name, value in zip(COLUMNS, GOOD, strict=True))


def test_times_are_divided_by_the_speed_and_later_runs_left_out(tmp_path: Path) -> None:
    rows = [
        row(),
        row(submitted_at="30", job_id="j2", run_id="r2", forge="gitlab"),
        row(submitted_at="600", job_id="j3", run_id="r3"),
    ]
    replay = replayed(a_trace(tmp_path, rows), speed=10, duration_s=20)
    assert [(one.at_s, one.forge, one.run_id) for one in replay.submissions] == [
        (0, "github", "r1"),
        (3, "gitlab", "r2"),
    ]
    (job,) = replay.submissions[0].run.jobs
    assert (job.key, job.labels, job.duration_s, job.script) == ("j1", ("linux", "x64"), 6.0, ("sleep 6.000",))
    assert (replay.trace_jobs, replay.jobs) == (3, 2)


def test_a_gzipped_trace_with_unknown_columns_reads_the_same(tmp_path: Path) -> None:
    plain = a_trace(tmp_path, [(*row(), "blue")], header=(*COLUMNS, "colour"))
    packed = tmp_path / "trace.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert replayed(packed, speed=1, duration_s=9) == replayed(plain, speed=1, duration_s=9)


def test_jobs_that_need_each_other_come_together_and_independent_ones_in_their_own_time(tmp_path: Path) -> None:
    rows = [
        row(job_id="build"),
        row(job_id="lint"),
        row(submitted_at="5", job_id="test", needs="build"),
        row(submitted_at="7", job_id="nightly"),
    ]
    submissions = replayed(a_trace(tmp_path, rows), speed=1, duration_s=60).submissions
    assert [(one.at_s, [job.key for job in one.run.jobs]) for one in submissions] == [
        (0, ["build", "lint", "test"]),
        (7, ["nightly"]),
    ]
    assert {one.run_id for one in submissions} == {"r1"}
    assert submissions[0].run.jobs[2].needs == ("build",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"submitted_at": "soon"}, "submitted_at 'soon'"),
        ({"submitted_at": "-1"}, "submitted_at '-1'"),
        ({"submitted_at": "nan"}, "submitted_at 'nan'"),
        ({"submitted_at": "4"}, "before the row above"),
        ({"duration_s": "0"}, "duration_s must be above 0"),
        ({"duration_s": "long"}, "duration_s 'long'"),
        ({"forge": "gitea"}, "forge 'gitea' must be github or gitlab"),
        ({"repo": "shop"}, "owner/name"),
        ({"job_id": ""}, "job_id is empty"),
        ({"job_id": "j1"}, "job_id j1 occurs twice"),
        ({"needs": "ghost"}, "needs ghost, which run r1 does not have"),
        ({"needs": "j2"}, "circle"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, change: dict[str, str], said: str) -> None:
    bad = row(**({"submitted_at": "5", "job_id": "j2"} | change))
    path = a_trace(tmp_path, [row(submitted_at="5"), bad])
    with pytest.raises(TraceError) as refused:
        replayed(path, speed=1, duration_s=60)
    assert f"{path}, line 3" in str(refused.value)
    assert said in str(refused.value)


def test_a_short_row_a_missing_column_and_what_is_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="line 2: there is no duration_s, needs"):
        replayed(a_trace(tmp_path, [row()[:8]]), speed=1, duration_s=60)
    with pytest.raises(TraceError, match="line 1: the header has no column needs"):
        replayed(a_trace(tmp_path, [], header=COLUMNS[:-1]), speed=1, duration_s=60)
    with pytest.raises(TraceError, match="there is no job in it"):
        replayed(a_trace(tmp_path, []), speed=1, duration_s=60)
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="UTF-8"):
        replayed(binary, speed=1, duration_s=60)
    packed = tmp_path / "cut.csv.gz"
    packed.write_bytes(gzip.compress(b"submitted_at," * 1000)[:40])
    with pytest.raises(TraceError, match="cut"):
        replayed(packed, speed=1, duration_s=60)
    with pytest.raises(TraceError, match="absent"):
        replayed(tmp_path / "absent.csv", speed=1, duration_s=60)


def test_each_label_set_of_a_forge_gets_a_pool_of_its_own(tmp_path: Path) -> None:
    rows = [
        row(),
        row(job_id="j2", run_id="r2", repo="other/tool", labels="X64 linux"),
        row(job_id="j3", run_id="r3", labels="linux arm64"),
        row(job_id="j4", run_id="r4", forge="gitlab", labels=""),
    ]
    pools = pools_of_trace(replayed(a_trace(tmp_path, rows), speed=1, duration_s=60).submissions)
    assert [(pool.name, pool.forge, pool.labels, pool.repos) for pool in pools] == [
        ("github-arm64-linux", "github", ("arm64", "linux"), ("acme/*",)),
        ("github-linux-x64", "github", ("linux", "x64"), ("acme/*", "other/*")),
        ("gitlab-untagged", "gitlab", ("untagged",), ("acme/*",)),
    ]
