"""Bodies that the sandbox's GitLab sends: Job Hooks, REST jobs, projects and runners, and the job a runner receives.

Pure functions from model values to JSON-ready dicts, key by key in the order of GitLab's documentation. The Job Hook
carries no job tags and no runner before one started the job: that is GitLab's shape, not an omission (spec 1.2).
"""

from collections.abc import Mapping, Sequence

from autoscaler.sandbox.gitlab_model import (
    Group,
    Job,
    JobStatus,
    Pipeline,
    Project,
    Runner,
    User,
    iso,
    iso_seconds,
)
from autoscaler.sandbox.gitlab_runners import contact_status, runner_status

Json = dict[str, object]
NULL_SHA = "0" * 40
FAILURE_REASONS = (
    "unknown_failure",
    "script_failure",
    "runner_system_failure",
    "job_execution_timeout",
    "runner_configuration_error",
    "runner_external_dependency_failure",
    "runner_interrupted",
)
JOB_TIMEOUT_S = 3600


def pipeline_status(jobs: Sequence[Job]) -> str:
    """The status of a pipeline from the newest attempts of its jobs."""
    seen = {job.status for job in jobs}
    active = {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.CANCELING} & seen
    begun = seen - {JobStatus.CREATED, JobStatus.PENDING, JobStatus.SKIPPED}
    if active or JobStatus.CREATED in seen:
        return "running" if begun else "pending" if JobStatus.PENDING in seen else "created"
    for final in (JobStatus.FAILED, JobStatus.CANCELED, JobStatus.SUCCESS):
        if final in seen:
            return str(final)
    return "skipped"


def queued_s(job: Job, now: float) -> float | None:
    """Seconds between pending and start, or until now (or the end) when it never started."""
    if job.pending_at is None:
        return None
    until = job.started_at or job.finished_at or now
    return round(max(0.0, until - job.pending_at), 6)


def duration_s(job: Job, now: float) -> float | None:
    """Seconds of running so far; None before the start."""
    return None if job.started_at is None else round((job.finished_at or now) - job.started_at, 6)


def job_hook(
    base_url: str,
    project: Project,
    pipeline: Pipeline,
    jobs: Sequence[Job],
    job: Job,
    *,
    runner: Runner | None,
    now: float,
) -> Json:
    """Body of a Job Hook for `job` as it is now; `jobs` are the pipeline's newest attempts."""
    finished = job.finished_at
    reason = None if job.status is JobStatus.CREATED else job.failure_reason or "unknown_failure"
    return {
        "object_kind": "build",
        "ref": pipeline.ref,
        "tag": False,
        "before_sha": NULL_SHA,
        "sha": pipeline.sha,
        "retries_count": job.retries,
        "build_id": job.id,
        "build_name": job.spec.name,
        "build_stage": pipeline.stages[job.spec.key],
        "build_status": str(job.status),
        "build_created_at": iso(job.created_at),
        "build_started_at": iso(job.started_at),
        "build_finished_at": iso(finished),
        "build_created_at_iso": iso_seconds(job.created_at),
        "build_started_at_iso": iso_seconds(job.started_at),
        "build_finished_at_iso": iso_seconds(finished),
        "build_duration": duration_s(job, now),
        "build_queued_duration": queued_s(job, now),
        "build_allow_failure": False,
        "build_failure_reason": reason,
        "pipeline_id": pipeline.id,
        "runner": None if runner is None else _hook_runner(runner),
        "project_id": project.id,
        "project_name": project.path,
        "user": _hook_user(base_url, job.user),
        "commit": _hook_commit(base_url, pipeline, jobs),
        "repository": _hook_repository(base_url, project),
        "project": _hook_project(base_url, project),
        "environment": None,
    }


def _hook_runner(runner: Runner) -> Json:
    return {
        "id": runner.id,
        "description": runner.description,
        "runner_type": str(runner.runner_type),
        "active": not runner.paused,
        "is_shared": runner.runner_type == "instance_type",
        "tags": sorted(runner.tags),
    }


def _hook_user(base_url: str, user: User) -> Json:
    return {
        "id": user.id,
        "name": user.name,
        "username": user.username,
        "avatar_url": f"{base_url}/avatar.png",
        "email": f"{user.username}@example.com",
    }


def _hook_commit(base_url: str, pipeline: Pipeline, jobs: Sequence[Job]) -> Json:
    starts = [job.started_at for job in jobs if job.started_at is not None]
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    status = pipeline_status(jobs)
    started = min(starts, default=None)
    finished = max(ends, default=None) if status in {"success", "failed", "canceled"} else None
    return {
        "id": pipeline.id,
        "name": pipeline.workflow,
        "sha": pipeline.sha,
        "message": f"{pipeline.workflow}\n",
        "author_name": pipeline.user.name,
        "author_email": f"{pipeline.user.username}@example.com",
        "author_url": f"{base_url}/{pipeline.user.username}",
        "status": status,
        "duration": int(finished - started) if started is not None and finished is not None else None,
        "started_at": iso(started),
        "finished_at": iso(finished),
        "started_at_iso": iso_seconds(started),
        "finished_at_iso": iso_seconds(finished),
    }


def _git_urls(base_url: str, project: Project) -> tuple[str, str]:
    host = base_url.split("://", 1)[-1].split(":", 1)[0]
    return f"git@{host}:{project.path}.git", f"{base_url}/{project.path}.git"


def _hook_repository(base_url: str, project: Project) -> Json:
    ssh, http = _git_urls(base_url, project)
    return {
        "name": project.path.rsplit("/", 1)[-1],
        "url": ssh,
        "description": "",
        "homepage": f"{base_url}/{project.path}",
        "git_ssh_url": ssh,
        "git_http_url": http,
        "visibility_level": 20,
    }


def _hook_project(base_url: str, project: Project) -> Json:
    ssh, http = _git_urls(base_url, project)
    namespace, name = project.path.rsplit("/", 1)
    return {
        "id": project.id,
        "name": name,
        "description": "",
        "web_url": f"{base_url}/{project.path}",
        "avatar_url": None,
        "git_ssh_url": ssh,
        "git_http_url": http,
        "namespace": namespace,
        "visibility_level": 20,
        "path_with_namespace": project.path,
        "default_branch": "main",
        "ci_config_path": None,
    }


def rest_job(
    base_url: str,
    project: Project,
    pipeline: Pipeline,
    jobs: Sequence[Job],
    job: Job,
    *,
    runner: Runner | None,
    now: float,
) -> Json:
    """A job as the REST API shows it. `failure_reason` is there only for failed jobs."""
    body: Json = {
        "id": job.id,
        "status": str(job.status),
        "stage": pipeline.stages[job.spec.key],
        "name": job.spec.name,
        "ref": pipeline.ref,
        "tag": False,
        "coverage": None,
        "allow_failure": False,
        "archived": False,
        "source": "push",
        "created_at": iso(job.created_at),
        "started_at": iso(job.started_at),
        "finished_at": iso(job.finished_at),
        "erased_at": None,
        "duration": duration_s(job, now),
        "queued_duration": queued_s(job, now),
        "tag_list": list(job.spec.labels),
        "user": rest_user(base_url, job.user),
        "commit": {
            "id": pipeline.sha,
            "short_id": pipeline.sha[:8],
            "title": pipeline.workflow,
            "message": f"{pipeline.workflow}\n",
            "author_name": pipeline.user.name,
            "author_email": f"{pipeline.user.username}@example.com",
            "created_at": iso(pipeline.created_at),
        },
        "pipeline": {
            "id": pipeline.id,
            "project_id": project.id,
            "ref": pipeline.ref,
            "sha": pipeline.sha,
            "status": pipeline_status(jobs),
        },
        "web_url": f"{base_url}/{project.path}/-/jobs/{job.id}",
        "project": {"ci_job_token_scope_enabled": False},
        "artifacts": [],
        "runner": None if runner is None else rest_runner(runner, busy=job.status is JobStatus.RUNNING, now=now),
        "artifacts_expire_at": None,
    }
    if job.status is JobStatus.FAILED:
        body["failure_reason"] = job.failure_reason
    if runner is not None and job.system_id in runner.machines:
        body["runner_manager"] = rest_machine(runner, job.system_id, busy=job.status is JobStatus.RUNNING, now=now)
    return body


def rest_user(base_url: str, user: User) -> Json:
    """A user as it is embedded in other answers, and the answer to GET /user."""
    return {
        "id": user.id,
        "name": user.name,
        "username": user.username,
        "state": "active",
        "avatar_url": f"{base_url}/avatar.png",
        "web_url": f"{base_url}/{user.username}",
    }


def rest_runner(runner: Runner, *, busy: bool, now: float) -> Json:
    """A runner in lists."""
    return {
        "id": runner.id,
        "description": runner.description,
        "ip_address": None,
        "active": not runner.paused,
        "paused": runner.paused,
        "is_shared": runner.runner_type == "instance_type",
        "runner_type": str(runner.runner_type),
        "name": "gitlab-runner" if runner.machines else None,
        "online": runner_status(runner, now) == "online",
        "status": runner_status(runner, now),
        "created_at": iso(runner.created_at),
        "job_execution_status": "active" if busy else "idle",
    }


def rest_runner_details(
    base_url: str,
    runner: Runner,
    projects: Mapping[int, Project],
    groups: Mapping[int, Group],
    *,
    busy: bool,
    now: float,
) -> Json:
    """A runner by itself: with tags, versions and where it belongs."""
    newest = max(runner.machines.values(), key=lambda machine: machine.contacted_at, default=None)
    owned_projects: list[Json] = []
    owned_groups: list[Json] = []
    if runner.runner_type == "project_type" and runner.scope_id is not None:
        path = projects[runner.scope_id].path
        owned_projects = [{"id": runner.scope_id, "name": path.rsplit("/", 1)[-1], "path_with_namespace": path}]
    if runner.runner_type == "group_type" and runner.scope_id is not None:
        path = groups[runner.scope_id].path
        owned_groups = [
            {"id": runner.scope_id, "name": path.rsplit("/", 1)[-1], "web_url": f"{base_url}/groups/{path}"}
        ]
    return rest_runner(runner, busy=busy, now=now) | {
        "tag_list": sorted(runner.tags),
        "run_untagged": runner.run_untagged,
        "locked": runner.locked,
        "maximum_timeout": runner.maximum_timeout,
        "access_level": runner.access_level,
        "version": newest.version if newest else None,
        "revision": newest.revision if newest else None,
        "platform": newest.platform if newest else None,
        "architecture": newest.architecture if newest else None,
        "contacted_at": iso(runner.contacted_at),
        "maintenance_note": runner.maintenance_note,
        "projects": owned_projects,
        "groups": owned_groups,
    }


def rest_machine(runner: Runner, system_id: str, *, busy: bool, now: float) -> Json:
    """One entry of GET /runners/:id/managers."""
    machine = runner.machines[system_id]
    return {
        "id": machine.id,
        "system_id": machine.system_id,
        "version": machine.version,
        "revision": machine.revision,
        "platform": machine.platform,
        "architecture": machine.architecture,
        "created_at": iso(machine.created_at),
        "contacted_at": iso(machine.contacted_at),
        "ip_address": "127.0.0.1",
        "status": contact_status(machine.contacted_at, now),
        "job_execution_status": "active" if busy else "idle",
    }


def rest_group(base_url: str, group: Group) -> Json:
    """A group."""
    name = group.path.rsplit("/", 1)[-1]
    return {
        "id": group.id,
        "name": name,
        "path": name,
        "full_name": group.path.replace("/", " / "),
        "full_path": group.path,
        "parent_id": group.parent_id,
        "visibility": "private",
        "web_url": f"{base_url}/groups/{group.path}",
    }


def rest_project(base_url: str, project: Project, group: Group) -> Json:
    """A project."""
    ssh, http = _git_urls(base_url, project)
    name = project.path.rsplit("/", 1)[-1]
    return {
        "id": project.id,
        "description": "",
        "name": name,
        "name_with_namespace": project.path.replace("/", " / "),
        "path": name,
        "path_with_namespace": project.path,
        "created_at": iso(project.created_at),
        "default_branch": "main",
        "ssh_url_to_repo": ssh,
        "http_url_to_repo": http,
        "web_url": f"{base_url}/{project.path}",
        "last_activity_at": iso(project.created_at),
        "namespace": {
            "id": group.id,
            "name": group.path.rsplit("/", 1)[-1],
            "path": group.path.rsplit("/", 1)[-1],
            "kind": "group",
            "full_path": group.path,
            "parent_id": group.parent_id,
        },
        "archived": False,
        "visibility": "private",
        "jobs_enabled": True,
        "shared_runners_enabled": True,
        "group_runners_enabled": True,
        "ci_config_path": None,
    }
