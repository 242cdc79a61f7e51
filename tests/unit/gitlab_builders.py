"""Short ways to fill a GitLabWorld: pipelines of jobs, project runners, and one job's life."""

from autoscaler.sandbox.gitlab_model import Contact, Job, Runner, RunnerType
from autoscaler.sandbox.gitlab_runners import RunnerRequest
from autoscaler.sandbox.gitlab_world import GitLabWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec

T0 = 1_700_000_000.0 // 3600 * 3600
HOUR_S = 3600.0


def spec(key: str, *, labels: tuple[str, ...] = ("linux",), needs: tuple[str, ...] = ()) -> JobSpec:
    return JobSpec(key=key, name=f"{key} job", labels=labels, needs=needs)


def submit(world: GitLabWorld, *jobs: JobSpec, repo: str = "acme/shop", now: float = T0) -> int:
    return world.submit(RunSpec(repo=repo, workflow="ci", jobs=jobs), now)


def add_runner(
    world: GitLabWorld, *tags: str, repo: str = "acme/shop", now: float = T0, untagged: bool = False, name: str = "m-1"
) -> Runner:
    project = world.add_project(repo, now)
    request = RunnerRequest(
        runner_type=RunnerType.PROJECT, scope_id=project.id, tags=tags, run_untagged=untagged, description=name
    )
    return world.create_runner(request, now)


def newest(world: GitLabWorld, key: str) -> Job:
    return next(world.job(out.job_ids[-1]) for out in world.outcomes() if out.key == key)


def serve(world: GitLabWorld, runner: Runner, state: str = "success", *, now: float = T0) -> Job:
    """The runner takes the oldest job and runs it to its end."""
    job = start(world, runner, now=now)
    reason = "script_failure" if state == "failed" else None
    answer = world.update_job(job.token, state, now, failure_reason=reason)
    assert answer.status == 200
    return job


def start(world: GitLabWorld, runner: Runner, *, now: float = T0, contact: Contact | None = None) -> Job:
    offer = world.request_job(runner.token, "s_1", now, contact=contact)
    assert offer is not None
    world.update_job(offer.token, "running", now)
    return world.job(offer.job_id)


def hooks(world: GitLabWorld) -> list[tuple[object, object]]:
    return [(d.payload["build_name"], d.payload["build_status"]) for d in world.drain_webhooks()]
