"""The generated workload: repeatable, on both forges, in stages, with one job that nobody serves."""

from hypothesis import given
from hypothesis import strategies as st

from autoscaler.sandbox.demo_pools import STANDARD_POOLS
from autoscaler.sandbox.demo_workload import LONGEST_S, SHORTEST_S, generated


@given(seed=st.integers(0, 10_000), duration_s=st.floats(1, 300))
def test_every_seed_gives_work_for_every_repo_and_one_unserved_job(seed: int, duration_s: float) -> None:
    submissions = generated(seed, duration_s)
    assert submissions == generated(seed, duration_s)
    assert {one.run.repo for one in submissions} == {"acme/shop", "acme/api", "tools/etl"}
    assert {one.forge for one in submissions} == {"github", "gitlab"}
    assert all(0 <= one.at_s < duration_s for one in submissions)
    assert [one.at_s for one in submissions] == sorted(one.at_s for one in submissions)
    assert len({one.run_id for one in submissions}) == len(submissions)
    jobs = [(one, job) for one in submissions for job in one.run.jobs]
    assert all(SHORTEST_S <= job.duration_s <= LONGEST_S for _, job in jobs)
    unserved = [(one.run.repo, job.name) for one, job in jobs if not _serving(one.forge, one.run.repo, job.labels)]
    assert unserved == [("acme/api", "bench")]


def test_two_seeds_differ() -> None:
    assert generated(1, 60) != generated(2, 60)


def _serving(forge: str, repo: str, labels: tuple[str, ...]) -> list[str]:
    owner = repo.partition("/")[0]
    return [
        pool.name
        for pool in STANDARD_POOLS
        if pool.forge == forge
        and (repo in pool.repos or f"{owner}/*" in pool.repos)
        and set(labels) <= set(pool.labels)
    ]
