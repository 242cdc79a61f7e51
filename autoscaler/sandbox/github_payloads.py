"""How github.com writes its objects as JSON: one pure function per object.

Shapes follow the public OpenAPI description and the webhook schemas; REST and webhooks share what they share.
Owns no state. `Urls` says under which addresses the objects claim to live: a webhook uses the world's own, an
answer over HTTP those the client asked at, as PyGithub refuses to follow links to other hosts.
"""

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from autoscaler.sandbox.github_model import Account, Hook, Job, Repository, Run, Runner, RunnerGroup, Step

Json = dict[str, Any]

_REPO_LINKS = {
    "archive_url": "/{archive_format}{/ref}",
    "assignees_url": "/assignees{/user}",
    "blobs_url": "/git/blobs{/sha}",
    "branches_url": "/branches{/branch}",
    "collaborators_url": "/collaborators{/collaborator}",
    "comments_url": "/comments{/number}",
    "commits_url": "/commits{/sha}",
    "compare_url": "/compare/{base}...{head}",
    "contents_url": "/contents/{+path}",
    "contributors_url": "/contributors",
    "deployments_url": "/deployments",
    "downloads_url": "/downloads",
    "events_url": "/events",
    "forks_url": "/forks",
    "git_commits_url": "/git/commits{/sha}",
    "git_refs_url": "/git/refs{/sha}",
    "git_tags_url": "/git/tags{/sha}",
    "hooks_url": "/hooks",
    "issue_comment_url": "/issues/comments{/number}",
    "issue_events_url": "/issues/events{/number}",
    "issues_url": "/issues{/number}",
    "keys_url": "/keys{/key_id}",
    "labels_url": "/labels{/name}",
    "languages_url": "/languages",
    "merges_url": "/merges",
    "milestones_url": "/milestones{/number}",
    "notifications_url": "/notifications{?since,all,participating}",
    "pulls_url": "/pulls{/number}",
    "releases_url": "/releases{/id}",
    "stargazers_url": "/stargazers",
    "statuses_url": "/statuses/{sha}",
    "subscribers_url": "/subscribers",
    "subscription_url": "/subscription",
    "tags_url": "/tags",
    "teams_url": "/teams",
    "trees_url": "/git/trees{/sha}",
}

_USER_LINKS = {
    "followers_url": "/followers",
    "following_url": "/following{/other_user}",
    "gists_url": "/gists{/gist_id}",
    "starred_url": "/starred{/owner}{/repo}",
    "subscriptions_url": "/subscriptions",
    "organizations_url": "/orgs",
    "repos_url": "/repos",
    "events_url": "/events{/privacy}",
    "received_events_url": "/received_events",
}


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the API and the pages live, without a slash at the end."""

    api: str
    html: str


def iso(at: float) -> str:
    """An instant as GitHub writes it: UTC, whole seconds."""
    return datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _iso_or_none(at: float | None) -> str | None:
    return None if at is None else iso(at)


def node_id(kind: str, number: int) -> str:
    return f"{kind}_" + base64.urlsafe_b64encode(number.to_bytes(8, "big")).decode().rstrip("=")


def user(login: str, number: int, urls: Urls, kind: str = "User") -> Json:
    url = f"{urls.api}/users/{login}"
    links = {key: url + tail for key, tail in _USER_LINKS.items()}
    return {
        "login": login,
        "id": number,
        "node_id": node_id("U", number),
        "avatar_url": f"{urls.html}/avatars/u/{number}?v=4",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{urls.html}/{login}",
        **links,
        "type": kind,
        "site_admin": False,
    }


def sender(urls: Urls) -> Json:
    """The person who pushed: the sandbox has one."""
    return user("octocat", 583_231, urls)


def owner(account: Account, urls: Urls) -> Json:
    return user(account.login, account.id, urls, "Organization")


def organization(account: Account, urls: Urls) -> Json:
    url = f"{urls.api}/orgs/{account.login}"
    return {
        "login": account.login,
        "id": account.id,
        "node_id": node_id("O", account.id),
        "url": url,
        "repos_url": f"{url}/repos",
        "events_url": f"{url}/events",
        "hooks_url": f"{url}/hooks",
        "issues_url": f"{url}/issues",
        "members_url": f"{url}/members{{/member}}",
        "public_members_url": f"{url}/public_members{{/member}}",
        "avatar_url": f"{urls.html}/avatars/u/{account.id}?v=4",
        "description": "",
    }


def minimal_repository(repo: Repository, urls: Urls) -> Json:
    url = f"{urls.api}/repos/{repo.full_name}"
    return {
        "id": repo.id,
        "node_id": node_id("R", repo.id),
        "name": repo.name,
        "full_name": repo.full_name,
        "private": repo.private,
        "owner": owner(repo.owner, urls),
        "html_url": f"{urls.html}/{repo.full_name}",
        "description": None,
        "fork": False,
        "url": url,
        **{key: url + tail for key, tail in _REPO_LINKS.items()},
    }


def repository(repo: Repository, urls: Urls) -> Json:
    """The whole object, as in webhooks and repository answers."""
    html = f"{urls.html}/{repo.full_name}"
    created = iso(repo.created_at)
    return {
        **minimal_repository(repo, urls),
        "created_at": created,
        "updated_at": created,
        "pushed_at": created,
        "git_url": f"git://{html.partition('://')[2]}.git",
        "ssh_url": f"git@{urls.html.partition('://')[2]}:{repo.full_name}.git",
        "clone_url": f"{html}.git",
        "svn_url": html,
        "homepage": None,
        "size": 1024,
        "stargazers_count": 0,
        "watchers_count": 0,
        "language": "Python",
        "has_issues": True,
        "has_projects": True,
        "has_downloads": True,
        "has_wiki": True,
        "has_pages": False,
        "has_discussions": False,
        "forks_count": 0,
        "mirror_url": None,
        "archived": False,
        "disabled": False,
        "open_issues_count": 0,
        "license": None,
        "allow_forking": True,
        "is_template": False,
        "web_commit_signoff_required": False,
        "topics": [],
        "visibility": "private" if repo.private else "public",
        "forks": 0,
        "open_issues": 0,
        "watchers": 0,
        "default_branch": "main",
    }


def _step(step: Step) -> Json:
    return {
        "name": step.name,
        "status": "completed",
        "conclusion": step.conclusion,
        "number": step.number,
        "started_at": iso(step.started_at),
        "completed_at": iso(step.completed_at),
    }


def _steps(row: Job) -> list[Json]:
    """What the runner reported at the end; while it runs, the one step that every job begins with."""
    if row.status != "in_progress" or row.started_at is None:
        return [_step(step) for step in row.steps]
    begun = {"name": "Set up job", "status": "in_progress", "conclusion": None, "number": 1}
    return [{**begun, "started_at": iso(row.started_at), "completed_at": None}]


def job(row: Job, run: Run, urls: Urls) -> Json:
    """One job, as REST and `workflow_job` write it. An unassigned job has null runner fields.

    For a queued job `started_at` equals `created_at` (specs B2).
    """
    api = f"{urls.api}/repos/{row.repo}"
    return {
        "id": row.id,
        "run_id": row.run_id,
        "workflow_name": run.spec.workflow,
        "head_branch": run.spec.ref,
        "run_url": f"{api}/actions/runs/{row.run_id}",
        "run_attempt": row.attempt,
        "node_id": node_id("CR", row.id),
        "head_sha": run.head_sha,
        "url": f"{api}/actions/jobs/{row.id}",
        "html_url": f"{urls.html}/{row.repo}/actions/runs/{row.run_id}/job/{row.id}",
        "status": row.status,
        "conclusion": row.conclusion,
        "created_at": iso(row.created_at),
        "started_at": iso(row.created_at if row.started_at is None else row.started_at),
        "completed_at": _iso_or_none(row.completed_at),
        "name": row.spec.name,
        "steps": _steps(row),
        "check_run_url": f"{api}/check-runs/{row.id}",
        "labels": list(row.spec.labels),
        "runner_id": row.runner_id,
        "runner_name": row.runner_name,
        "runner_group_id": row.runner_group_id,
        "runner_group_name": row.runner_group_name,
    }


def _head_commit(run: Run) -> Json:
    person = {"name": "octocat", "email": "octocat@example.com"}
    return {
        "id": run.head_sha,
        "tree_id": run.head_sha,
        "message": f"{run.spec.workflow} {run.number}",
        "timestamp": iso(run.created_at),
        "author": person,
        "committer": person,
    }


def workflow_path(run: Run) -> str:
    return f".github/workflows/{run.spec.workflow}.yml"


def run(row: Run, repo: Repository, urls: Urls) -> Json:
    """One workflow run, as REST and `workflow_run` write it."""
    api = f"{urls.api}/repos/{repo.full_name}"
    url = f"{api}/actions/runs/{row.id}"
    small = minimal_repository(repo, urls)
    previous = f"{url}/attempts/{row.attempt - 1}" if row.attempt > 1 else None
    return {
        "id": row.id,
        "name": row.spec.workflow,
        "node_id": node_id("WFR", row.id),
        "head_branch": row.spec.ref,
        "head_sha": row.head_sha,
        "path": workflow_path(row),
        "display_title": f"{row.spec.workflow} {row.number}",
        "run_number": row.number,
        "event": "push",
        "status": row.status,
        "conclusion": row.conclusion,
        "workflow_id": row.workflow_id,
        "check_suite_id": row.id,
        "check_suite_node_id": node_id("CS", row.id),
        "url": url,
        "html_url": f"{urls.html}/{repo.full_name}/actions/runs/{row.id}",
        "pull_requests": [],
        "created_at": iso(row.created_at),
        "updated_at": iso(row.updated_at),
        "actor": sender(urls),
        "triggering_actor": sender(urls),
        "run_attempt": row.attempt,
        "run_started_at": iso(row.attempt_started_at),
        "referenced_workflows": [],
        "jobs_url": f"{url}/jobs",
        "logs_url": f"{url}/logs",
        "check_suite_url": f"{api}/check-suites/{row.id}",
        "artifacts_url": f"{url}/artifacts",
        "cancel_url": f"{url}/cancel",
        "rerun_url": f"{url}/rerun",
        "previous_attempt_url": previous,
        "workflow_url": f"{api}/actions/workflows/{row.workflow_id}",
        "head_commit": _head_commit(row),
        "repository": small,
        "head_repository": small,
    }


def workflow(row: Run, repo: Repository, urls: Urls) -> Json:
    created = iso(repo.created_at)
    path = workflow_path(row)
    return {
        "id": row.workflow_id,
        "node_id": node_id("W", row.workflow_id),
        "name": row.spec.workflow,
        "path": path,
        "state": "active",
        "created_at": created,
        "updated_at": created,
        "url": f"{urls.api}/repos/{repo.full_name}/actions/workflows/{row.workflow_id}",
        "html_url": f"{urls.html}/{repo.full_name}/blob/{row.spec.ref}/{path}",
        "badge_url": f"{urls.html}/{repo.full_name}/workflows/{row.spec.workflow}/badge.svg",
    }


def runner(row: Runner) -> Json:
    body: Json = {
        "id": row.id,
        "runner_group_id": row.group_id,
        "name": row.name,
        "os": "unknown" if row.version is None else "linux",
        "status": "online" if row.online else "offline",
        "busy": row.busy,
        "labels": [{"id": i, "name": label, "type": "custom"} for i, label in enumerate(row.labels, 1)],
        "ephemeral": True,
    }
    return body if row.version is None else {**body, "version": row.version}


def runner_group(row: RunnerGroup, urls: Urls) -> Json:
    url = f"{urls.api}/orgs/{row.org}/actions/runner-groups/{row.id}"
    body: Json = {
        "id": row.id,
        "name": row.name,
        "visibility": "all" if row.repos is None else "selected",
        "default": row.id == 1,
        "runners_url": f"{url}/runners",
        "inherited": False,
        "allows_public_repositories": True,
        "restricted_to_workflows": False,
        "selected_workflows": [],
    }
    return body if row.repos is None else {**body, "selected_repositories_url": f"{url}/repositories"}


def annotation(message: str, urls: Urls, repo: str, sha: str) -> Json:
    return {
        "path": ".github",
        "blob_href": f"{urls.html}/{repo}/blob/{sha}/.github",
        "start_line": 1,
        "end_line": 1,
        "start_column": None,
        "end_column": None,
        "annotation_level": "failure",
        "title": "",
        "message": message,
        "raw_details": "",
    }


def hook(row: Hook, urls: Urls) -> Json:
    """A hook of an organisation or a repository; the secret is masked as GitHub masks it."""
    assert row.scope is not None
    kind = "repos" if "/" in row.scope else "orgs"
    url = f"{urls.api}/{kind}/{row.scope}/hooks/{row.id}"
    body: Json = {
        "id": row.id,
        "url": url,
        "type": "Repository" if kind == "repos" else "Organization",
        "name": "web",
        "active": True,
        "events": list(row.events),
        "config": {"url": row.url, "content_type": "json", "insecure_ssl": "0", "secret": "********"},
        "ping_url": f"{url}/pings",
        "deliveries_url": f"{url}/deliveries",
        "created_at": iso(row.created_at),
        "updated_at": iso(row.created_at),
    }
    if kind == "repos":
        body |= {"test_url": f"{url}/test", "last_response": {"code": None, "status": "unused", "message": None}}
    return body
