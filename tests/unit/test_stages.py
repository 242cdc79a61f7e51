"""What live runs will queue next, by how the last runs of their workflow unfolded; when runs with lost jobs end.

A little longer than others: every test tells a run's life with the same few words.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.model import Arrivals, Job, JobId, JobState
from autoscaler.run_shapes import (
    KINDS_KEPT,
    RUNS_KEPT,
    Follows,
    Kind,
    Shape,
    expectations,
    shape_of,
    shapes_from,
    shapes_text,
)
from autoscaler.spi import Conclusion, PoolName, ProviderName
from autoscaler.stages import QUIET, WEIGHT_KEPT, Stages
from autoscaler.store import Learned
from tests.admin_world import GITHUB, GPU, LINUX, job, pool
from tests.unit.observing import NOW

REPO = "acme/shop"
POOLS = {LINUX: pool(LINUX, "linux", "x64"), GPU: pool(GPU, "linux", "gpu")}
S = JobState
BUILD_S, TEST_S, BOOT_S = 60.0, 30.0, 40.0


@dataclass
class Workshop:
    """Runs of one workflow: build, then so many tests and a lint beside them, then a deploy."""

    stages: Stages
    hours: dict[Any, float]
    now: datetime = NOW
    jobs: dict[JobId, Job] = field(default_factory=dict)
    number: int = 0
    runs: int = 100

    def queue(self, run: str, *names: str, **changes: Any) -> list[Job]:
        made = []
        for name in names:
            self.number += 1
            row = job(self.number, self.now, run_id=run, name=name, labels=("linux", "x64"), **changes)
            made.append(self.put(row))
        return made

    def put(self, row: Job) -> Job:
        self.jobs[row.id] = row
        self.stages.job_moved(row, self.now)
        return row

    def start(self, rows: Sequence[Job]) -> list[Job]:
        return [self.put(replace(row, state=S.RUNNING, started_at=self.now)) for row in rows]

    def end(self, rows: Sequence[Job], conclusion: Conclusion = Conclusion.SUCCESS) -> list[Job]:
        return [self.put(replace(row, state=S.DONE, conclusion=conclusion, finished_at=self.now)) for row in rows]

    def lose(self, row: Job) -> Job:
        return self.put(replace(row, state=S.LOST))

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def stage(self, run: str, *names: str, seconds: float, conclusion: Conclusion = Conclusion.SUCCESS) -> None:
        rows = self.queue(run, *names)
        self.wait(5)
        rows = self.start(rows)
        self.wait(seconds)
        self.end(rows, conclusion)
        self.wait(2)

    def whole_run(self, *, tests: int = 4, build: Conclusion = Conclusion.SUCCESS) -> None:
        self.runs += 1
        run = str(self.runs)
        self.stage(run, "build", seconds=BUILD_S, conclusion=build)
        if build is Conclusion.SUCCESS:
            self.stage(run, *(f"test ({number})" for number in range(tests)), seconds=TEST_S)
            self.stage(run, "deploy", seconds=10)
        self.over(run)

    def over(self, run: str) -> None:
        self.stages.run_finished(GITHUB, REPO, run)
        self.reckon()

    def reckon(self) -> None:
        self.stages.reckon(POOLS, self.now)

    def foreseen(self) -> list[tuple[str, int, float]]:
        """What is foreseen of each run: which run, how many jobs, in how many seconds."""
        self.reckon()
        return [(one.run_id, one.count, (one.due_at - self.now).total_seconds()) for one in self.stages.foreseen]

    def the_end(self, run: str) -> float | None:
        """In how many seconds a run with lost jobs will be over."""
        self.reckon()
        end = self.stages.run_ends.get((GITHUB, REPO, run))
        return (end - self.now).total_seconds() if end is not None else None


def workshop(learned: dict[str, Learned] | None = None) -> Workshop:
    hours: dict[Any, float] = {(GITHUB, REPO, "ci", "build"): BUILD_S / 3600}
    known = {(LINUX, ProviderName("aws")): Arrivals(seconds=(30, BOOT_S, 50))}
    stages = Stages({} if learned is None else learned, hours=hours, arrivals=lambda: known)
    return Workshop(stages=stages, hours=hours)


@pytest.fixture
def shop() -> Workshop:
    return workshop()


def one_build(shop: Workshop, run: str = "7") -> list[Job]:
    """A new run whose build has just started."""
    return shop.start(shop.queue(run, "build"))


# --------------------------------------------------------------------------- what comes next


def test_jobs_of_the_next_stage_are_foreseen_while_the_one_before_runs(shop: Workshop) -> None:
    shop.whole_run()
    one_build(shop)
    shop.wait(20)
    assert shop.foreseen() == [("7", 4, BUILD_S - 20 + 2)]
    (one,) = shop.stages.foreseen
    assert (one.pool, one.labels, one.repo) == (LINUX, ("linux", "x64"), REPO)
    assert one.hours == pytest.approx(TEST_S / 3600)
    assert one.reason == "build of acme/shop is usually followed by 4 jobs test"


def test_nothing_is_foreseen_of_a_workflow_that_never_ran(shop: Workshop) -> None:
    one_build(shop)
    assert shop.foreseen() == []


def test_nothing_is_foreseen_before_the_stage_runs_and_after_its_jobs_appeared(shop: Workshop) -> None:
    shop.whole_run()
    queued = shop.queue("7", "build")
    assert shop.foreseen() == [], "nobody knows when it will start"
    running = shop.start(queued)
    assert len(shop.foreseen()) == 1
    shop.wait(BUILD_S)
    shop.end(running)
    assert shop.foreseen() == [("7", 4, 2)]
    shop.queue("7", "test (0)")
    assert shop.foreseen() == []


def test_the_stage_after_next_is_not_foreseen_yet(shop: Workshop) -> None:
    shop.whole_run()
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [4], "not the deploy"


def test_a_stage_is_over_when_the_last_of_its_jobs_is(shop: Workshop) -> None:
    shop.whole_run()
    tests = shop.start(shop.queue("7", "build"))
    shop.wait(BUILD_S)
    shop.end(tests)
    rows = shop.queue("7", "test (0)", "test (1)")
    first = shop.start(rows[:1])
    shop.wait(10)
    assert shop.foreseen() == []
    shop.start(rows[1:])
    assert shop.foreseen() == [("7", 1, TEST_S + 2)]
    shop.end(first)
    assert shop.foreseen() == [("7", 1, TEST_S + 2)]


def test_only_what_nearly_every_one_of_the_last_runs_had_is_foreseen(shop: Workshop) -> None:
    for tests in (6, 5, 2, 4, 4):
        shop.whole_run(tests=tests)
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [4], "of 2, 4, 4, 5 and 6 the lower quartile"


def test_one_failed_build_of_five_hides_nothing_and_two_do(shop: Workshop) -> None:
    for build in (Conclusion.FAILURE, *[Conclusion.SUCCESS] * 4):
        shop.whole_run(build=build)
    shop.whole_run(build=Conclusion.FAILURE)
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [4]
    shop.whole_run(build=Conclusion.FAILURE)
    one_build(shop, "8")
    assert "8" not in [run for run, _, _ in shop.foreseen()], "of the last five runs two had no tests"


def test_a_run_that_somebody_cancelled_says_nothing_about_what_did_not_come(shop: Workshop) -> None:
    shop.whole_run()
    for _ in range(3):
        shop.whole_run(build=Conclusion.CANCELLED)
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [4]


@pytest.mark.parametrize("conclusion", [Conclusion.FAILURE, Conclusion.CANCELLED])
def test_a_stage_that_failed_is_followed_by_nothing(shop: Workshop, conclusion: Conclusion) -> None:
    shop.whole_run()
    running = one_build(shop)
    assert len(shop.foreseen()) == 1
    shop.wait(BUILD_S)
    shop.end(running, conclusion)
    assert shop.foreseen() == []


def test_a_stage_that_lost_a_job_is_followed_by_nothing_until_the_job_runs_again(shop: Workshop) -> None:
    shop.whole_run()
    (running,) = one_build(shop)
    lost = shop.lose(running)
    assert shop.foreseen() == []
    shop.put(replace(lost, state=S.REQUEUED))
    shop.start(shop.queue("7", "build", attempt=2, run_attempt=2))
    assert shop.foreseen() == [("7", 4, BUILD_S + 2)]


def test_what_does_not_come_in_twice_the_time_is_given_up(shop: Workshop) -> None:
    shop.whole_run()
    one_build(shop)
    assert len(shop.foreseen()) == 1
    shop.wait(2 * BUILD_S)
    assert len(shop.foreseen()) == 1, "twice the build's time and the pauses are not over"
    shop.wait(2 * 2 + 1)
    assert shop.foreseen() == []


def test_a_run_that_ended_is_followed_by_nothing(shop: Workshop) -> None:
    shop.whole_run()
    shop.end(one_build(shop))
    assert len(shop.foreseen()) == 1
    shop.over("7")
    assert shop.foreseen() == []


def test_a_quiet_run_is_over_even_where_its_forge_does_not_say_so(shop: Workshop) -> None:
    shop.stage("1", "build", seconds=BUILD_S)
    shop.stage("1", "test (0)", seconds=TEST_S)
    shop.wait(QUIET.total_seconds())
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [1]


def test_a_job_that_waits_for_a_person_is_not_foreseen(shop: Workshop) -> None:
    for pause_s in (10, 200):
        run = f"1{pause_s}"
        shop.stage(run, "build", seconds=BUILD_S)
        shop.queue(run, "lint")  # keeps the run open
        shop.wait(pause_s)
        shop.stage(run, "deploy", seconds=10)
        shop.end(list(shop.jobs.values())[-2:])
        shop.over(run)
    one_build(shop)
    shop.reckon()
    assert [one.reason for one in shop.stages.foreseen if "deploy" in one.reason] == []


def test_a_matrix_that_runs_a_few_jobs_at_a_time_is_foreseen_by_those_few(shop: Workshop) -> None:
    shop.stage("1", "build", seconds=BUILD_S)
    waves = [shop.start(shop.queue("1", "test (0)", "test (1)"))]
    for number in range(2, 6):
        shop.wait(TEST_S)
        first, *others = waves[-1]
        shop.end([first])
        shop.wait(1)
        waves.append([*others, *shop.start(shop.queue("1", f"test ({number})"))])
    shop.wait(TEST_S)
    shop.end(waves[-1])
    shop.over("1")
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [2]


def test_a_binding_label_names_the_run_that_it_is_foreseen_for(shop: Workshop) -> None:
    for run in ("1", "2"):
        shop.stage(run, "build", seconds=BUILD_S)
        bound = [replace(row, labels=("linux", f"run-{run}")) for row in shop.queue("x", "unit")]
        bound = [replace(row, run_id=run) for row in bound]
        shop.end(shop.start(bound))
        shop.over(run)
    one_build(shop)
    shop.reckon()
    (one,) = shop.stages.foreseen
    assert one.labels == ("linux", "run-7")


def test_jobs_of_a_pool_that_is_configured_no_more_are_not_foreseen(shop: Workshop) -> None:
    shop.whole_run()
    one_build(shop)
    shop.stages.reckon({}, shop.now)
    assert shop.stages.foreseen == ()


def test_how_runs_unfold_survives_a_restart(shop: Workshop) -> None:
    shop.whole_run()
    shop.stages.unkept.make_due()
    after = workshop({one.key: one for one in shop.stages.unkept.take(10)})
    one_build(after)
    assert after.foreseen() == [("7", 4, BUILD_S + 2)]


def test_after_a_restart_nothing_is_said_that_what_was_forgotten_could_belie(shop: Workshop) -> None:
    shop.whole_run()
    shop.stages.unkept.make_due()
    rows = {one.key: one for one in shop.stages.unkept.take(10)}
    live = shop.start(shop.queue("7", "deploy"))
    after = workshop(dict(rows))
    after.stages.recall({row.id: row for row in live}, shop.now)
    assert after.foreseen() == [], "its build and tests ended before the restart"
    after.end(live)
    after.over("7")
    after.stages.unkept.make_due()
    assert after.stages.unkept.take(10) == [], "half a run teaches nothing"
    build = shop.start(shop.queue("8", "build"))
    again = workshop(dict(rows))
    again.stages.recall({row.id: row for row in build}, shop.now)
    assert [count for _, count, _ in again.foreseen()] == [4], "a build that runs has no tests behind it"


# --------------------------------------------------------------------------- when runs end


def test_a_run_without_a_lost_job_has_no_end_worth_telling(shop: Workshop) -> None:
    shop.whole_run()
    one_build(shop)
    assert shop.the_end("7") is None


def test_a_run_ends_when_its_other_jobs_do(shop: Workshop) -> None:
    shop.whole_run()
    rows = shop.start(shop.queue("7", "build", "build (2)"))
    shop.wait(10)
    shop.lose(rows[1])
    assert shop.the_end("7") == BUILD_S - 10


def test_jobs_that_follow_the_lost_one_are_not_waited_for_and_others_are(shop: Workshop) -> None:
    for run in ("1", "2"):
        first = shop.start(shop.queue(run, "build", "docs"))
        shop.wait(BUILD_S)
        shop.end(first[:1])
        shop.wait(10)
        shop.end(first[1:])
        test = shop.start(shop.queue(run, "publish"))
        shop.wait(TEST_S)
        shop.end(test)
        shop.over(run)
    shop.hours[GITHUB, REPO, "ci", "docs"] = 70 / 3600
    build, _ = shop.start(shop.queue("7", "build", "docs"))
    shop.lose(build)
    assert shop.the_end("7") == 70, "publish needs the build"


def test_a_stage_that_still_comes_beside_the_lost_job_counts(shop: Workshop) -> None:
    for run in ("1", "2"):
        first = shop.start(shop.queue(run, "build", "slow"))
        shop.wait(BUILD_S)
        shop.end(first[:1])
        shop.wait(2)
        test = shop.start(shop.queue(run, "test"))
        shop.wait(TEST_S)
        shop.end(test)
        shop.wait(200)
        shop.end(first[1:])
        shop.over(run)
    rows = shop.start(shop.queue("7", "build", "slow"))
    shop.lose(rows[1])
    assert shop.the_end("7") == BUILD_S + 2 + BOOT_S + TEST_S


def test_the_end_of_a_run_is_unknown_while_a_job_of_it_was_never_seen_before(shop: Workshop) -> None:
    rows = shop.start(shop.queue("7", "build", "brand new"))
    shop.lose(rows[0])
    assert shop.the_end("7") is None


def test_a_job_that_still_waits_is_expected_to_start_when_a_machine_would_come(shop: Workshop) -> None:
    rows = shop.queue("7", "build", "build")
    shop.lose(shop.start(rows[:1])[0])
    assert shop.the_end("7") == BOOT_S + BUILD_S


def test_a_run_whose_lost_job_waits_long_is_still_known(shop: Workshop) -> None:
    rows = shop.start(shop.queue("7", "build", "build"))
    shop.wait(10)
    shop.end(rows[1:])
    lost = shop.lose(rows[0])
    shop.wait(10 * QUIET.total_seconds())
    assert shop.the_end("7") is not None
    shop.put(replace(lost, state=S.ABANDONED))
    assert shop.the_end("7") is None


# --------------------------------------------------------------------------- shapes


def test_what_had_ended_by_chance_is_no_need_once_it_once_had_not(shop: Workshop) -> None:
    for lint_s in (10, 100):
        run = f"1{lint_s}"
        build, lint = shop.start(shop.queue(run, "build", "lint"))
        for name, at in sorted((("lint", lint_s), ("build", 60)), key=lambda one: one[1]):
            shop.now = NOW + timedelta(hours=lint_s, seconds=at)
            shop.end([build if name == "build" else lint])
            if name == "build":
                shop.wait(1)
                tests = shop.start(shop.queue(run, "test"))
        shop.wait(50)
        shop.end(tests)
        shop.over(run)
        shop.now = NOW + timedelta(hours=100)
    one_build(shop)
    assert [count for _, count, _ in shop.foreseen()] == [1], "the tests need no lint"


def test_a_run_whose_build_was_never_heard_of_hides_nothing_and_two_do(shop: Workshop) -> None:
    def unheard(run: str) -> None:
        shop.stage(run, *(f"test ({number})" for number in range(4)), seconds=TEST_S)
        shop.stage(run, "deploy", seconds=10)
        shop.over(run)

    for _ in range(4):
        shop.whole_run()
    unheard("1")
    one_build(shop, "7")
    assert [count for _, count, _ in shop.foreseen()] == [4]
    unheard("2")
    one_build(shop, "8")
    assert "8" not in [run for run, _, _ in shop.foreseen()]


KINDS = [Kind(stem, PoolName("linux"), ("linux",)) for stem in ("build", "lint", "test", "deploy")]
FOLLOWS = st.builds(
    Follows,
    count=st.integers(1, 9),
    after=st.frozensets(st.sampled_from(KINDS)),
    pause_s=st.floats(0, 400),
    run_s=st.none() | st.floats(0, 1e5),
)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kinds = draw(st.dictionaries(st.sampled_from(KINDS), FOLLOWS, min_size=1))
    kinds = {kind: replace(one, after=one.after & kinds.keys() - {kind}) for kind, one in kinds.items()}
    return Shape(kinds=kinds, is_cut=draw(st.booleans()))


@given(st.lists(shapes(), max_size=5))
def test_shapes_are_read_as_they_were_written(made: list[Shape]) -> None:
    assert shapes_from(shapes_text(made)) == made


@given(st.lists(shapes(), min_size=1, max_size=5))
def test_no_more_is_expected_than_some_run_had(made: list[Shape]) -> None:
    for one in expectations(made):
        counts = [shape.kinds[one.kind].count for shape in made if one.kind in shape.kinds]
        assert 0 < one.count <= max(counts)
        assert one.after
        assert one.kind not in one.after


def test_a_run_of_more_kinds_than_a_workflow_has_is_not_kept() -> None:
    rows = {Kind(f"made up {n}", LINUX, ()): (job(n, NOW, S.DONE, finished_at=NOW),) for n in range(100)}
    assert shape_of(rows) is None


def test_kinds_that_share_their_stem_do_not_share_their_hash() -> None:
    """Each of thousands of jobs of one name would be compared with all others, with each of their moves."""
    assert len({hash(Kind("test", LINUX, (f"label-{number}",))) for number in range(1000)}) > 990


def test_workflows_made_up_to_be_long_cost_no_more_memory_than_all_others() -> None:
    steps = [Kind(f"step {number}", LINUX, ("linux",)) for number in range(KINDS_KEPT)]
    long = Shape(
        kinds={
            kind: Follows(count=1, after=frozenset(steps[:number]), pause_s=1.0, run_s=5.0)
            for number, kind in enumerate(steps)
        }
    )
    value = shapes_text([long] * RUNS_KEPT)
    rows = [row_of(f"made up {number}", value, minute=number) for number in range(110)]
    stages = workshop({row.key: row for row in rows}).stages
    assert stages._weight == sum(stages._weights.values()) <= WEIGHT_KEPT
    assert 90 < len(stages._shapes) < 110
    assert (GITHUB, REPO, "made up 109") in stages._shapes
    assert stages._shapes.keys() == stages._weights.keys() == stages._expected.keys()


def test_kinds_with_names_made_up_to_be_long_are_not_learned(shop: Workshop) -> None:
    for run in ("1", "2"):
        shop.stage(run, "build", seconds=BUILD_S)
        shop.stage(run, "x" * 5000, seconds=TEST_S)
        shop.over(run)
    shop.stages.unkept.make_due()
    assert not shop.stages.unkept.take(10)


def row_of(workflow: str, value: Any, *, minute: int) -> Learned:
    text = json.dumps([[GITHUB, REPO, workflow], value])
    return Learned(key=f"stages/{workflow}", at=NOW + timedelta(minutes=minute), value=text)
