"""The job document that a runner receives: 201 of POST /jobs/request (GitLab spec 4.3, field names of gitlab-runner).

Pure. The working copy is never cloned (`GIT_STRATEGY=none`): the sandbox's jobs are shell lines.
"""

from collections.abc import Sequence

from autoscaler.sandbox.gitlab_model import Job, Pipeline, Project, Runner
from autoscaler.sandbox.gitlab_payloads import JOB_TIMEOUT_S, NULL_SHA, Json, queued_s


def _variable(key: str, value: str, *, secret: bool = False) -> Json:
    return {"key": key, "value": value, "public": not secret, "file": False, "masked": secret, "raw": False}


def _variables(base_url: str, project: Project, pipeline: Pipeline, job: Job, runner: Runner) -> list[Json]:
    plain = {
        "GIT_STRATEGY": "none",
        "CI": "true",
        "GITLAB_CI": "true",
        "CI_SERVER_URL": base_url,
        "CI_API_V4_URL": f"{base_url}/api/v4",
        "CI_JOB_ID": str(job.id),
        "CI_JOB_NAME": job.spec.name,
        "CI_JOB_STAGE": pipeline.stages[job.spec.key],
        "CI_PIPELINE_ID": str(pipeline.id),
        "CI_PROJECT_ID": str(project.id),
        "CI_PROJECT_NAME": project.path.rsplit("/", 1)[-1],
        "CI_PROJECT_PATH": project.path,
        "CI_COMMIT_SHA": pipeline.sha,
        "CI_COMMIT_SHORT_SHA": pipeline.sha[:8],
        "CI_COMMIT_REF_NAME": pipeline.ref,
        "CI_RUNNER_ID": str(runner.id),
        "CI_RUNNER_DESCRIPTION": runner.description,
        "GITLAB_USER_LOGIN": job.user.username,
    }
    return [*(_variable(key, value) for key, value in plain.items()), _variable("CI_JOB_TOKEN", job.token, secret=True)]


def runner_job(
    base_url: str,
    project: Project,
    pipeline: Pipeline,
    job: Job,
    runner: Runner,
    *,
    queue_size: int,
    failure_reasons: Sequence[str],
    timeout_s: int = JOB_TIMEOUT_S,
    now: float,
) -> Json:
    """What the runner gets for `job`; `queue_size` counts what it could have had; it may report `failure_reasons`."""
    timeout = min(timeout_s, runner.maximum_timeout) if runner.maximum_timeout else timeout_s
    host = base_url.split("://", 1)[-1]
    return {
        "id": job.id,
        "token": job.token,
        "allow_git_fetch": True,
        "job_info": {
            "id": job.id,
            "name": job.spec.name,
            "stage": pipeline.stages[job.spec.key],
            "pipeline_id": pipeline.id,
            "project_id": project.id,
            "project_name": project.path.rsplit("/", 1)[-1],
            "project_full_path": project.path,
            "namespace_id": project.group_id,
            "root_namespace_id": project.group_id,
            "organization_id": 1,
            "instance_id": "sandbox",
            "instance_uuid": "00000000-0000-0000-0000-000000000000",
            "user_id": job.user.id,
            "time_in_queue_seconds": queued_s(job, now),
            "project_jobs_running_on_instance_runners_count": "0",
            "queue_size": queue_size,
            "queue_depth": 0,
        },
        "git_info": {
            "repo_url": f"http://gitlab-ci-token:{job.token}@{host}/{project.path}.git",
            "repo_object_format": "sha1",
            "ref": pipeline.ref,
            "sha": pipeline.sha,
            "before_sha": NULL_SHA,
            "ref_type": "branch",
            "refspecs": [f"+refs/heads/{pipeline.ref}:refs/remotes/origin/{pipeline.ref}"],
            "depth": 20,
            "protected": False,
        },
        "runner_info": {"uuid": "", "timeout": timeout},
        "inputs": [],
        "variables": _variables(base_url, project, pipeline, job, runner),
        "steps": [
            {
                "name": "script",
                "script": list(job.spec.script),
                "timeout": timeout,
                "when": "on_success",
                "allow_failure": False,
            }
        ],
        "image": {"name": ""},
        "services": [],
        "artifacts": [],
        "cache": [],
        "credentials": [],
        "dependencies": [],
        "features": {
            "trace_sections": True,
            "token_mask_prefixes": ["glpat-"],
            "failure_reasons": list(failure_reasons),
            "tracing": None,
        },
        "secrets": {},
        "hooks": [],
        "policy_options": {"execution_policy_job": False, "policy_name": ""},
    }
