"""What Apps and people write onto commits of the sandbox's github.com: check runs and commit statuses.

Pure, as the world that owns it. The check runs of jobs are the jobs themselves and are not in here. A commit exists
where a run was made for it.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable

from autoscaler.sandbox.github_model import CheckRun, CommitStatus, GitHubError

STATES = ("error", "failure", "pending", "success")
CONCLUSIONS = (
    "action_required", "cancelled", "failure", "neutral", "success", "skipped", "stale", "timed_out",
)  # fmt: skip
DESCRIPTION_LIMIT = 140


class CheckBook:
    """Check runs and statuses by commit. `has_commit(repo, sha)` says what there is to write onto."""

    def __init__(self, has_commit: Callable[[str, str], bool]) -> None:
        self._has_commit = has_commit
        self._ids = itertools.count(34_000_000_001)
        self._check_runs: defaultdict[tuple[str, str], list[CheckRun]] = defaultdict(list)
        self._statuses: defaultdict[tuple[str, str], list[CommitStatus]] = defaultdict(list)

    def add_check_run(
        self,
        repo: str,
        head_sha: str,
        *,
        name: str,
        now: float,
        status: str = "queued",
        conclusion: str | None = None,
        external_id: str = "",
        details_url: str = "",
        title: str = "",
        summary: str = "",
        app_id: int | None = None,
    ) -> CheckRun:
        """A check run. GitHubError 422 for what GitHub does not take."""
        if not self._has_commit(repo, head_sha):
            raise GitHubError(422, f"No commit found for SHA: {head_sha}")
        if not name or (conclusion is not None and conclusion not in CONCLUSIONS):
            raise GitHubError(422, "Invalid request.")
        check_run = CheckRun(
            id=next(self._ids),
            repo=repo,
            head_sha=head_sha,
            name=name,
            external_id=external_id,
            status="completed" if conclusion is not None else status,
            conclusion=conclusion,
            details_url=details_url,
            title=title,
            summary=summary,
            created_at=now,
            app_id=app_id,
        )
        self._check_runs[repo, head_sha].append(check_run)
        return check_run

    def add_status(
        self,
        repo: str,
        sha: str,
        *,
        state: str,
        context: str,
        now: float,
        description: str = "",
        target_url: str = "",
        creator: str = "",
    ) -> CommitStatus:
        """A commit status. GitHubError 422 for what GitHub does not take."""
        if not self._has_commit(repo, sha):
            raise GitHubError(422, f"No commit found for SHA: {sha}")
        if state not in STATES or len(description) > DESCRIPTION_LIMIT:
            raise GitHubError(422, "Validation Failed")
        status = CommitStatus(
            id=next(self._ids),
            repo=repo,
            sha=sha,
            state=state,
            context=context,
            description=description,
            target_url=target_url,
            created_at=now,
            creator=creator,
        )
        self._statuses[repo, sha].append(status)
        return status

    def check_runs(self, repo: str, sha: str) -> list[CheckRun]:
        """Those of a commit, newest first. GitHubError 422 for an unknown commit."""
        if not self._has_commit(repo, sha):
            raise GitHubError(422, f"No commit found for SHA: {sha}")
        return self._check_runs[repo, sha][::-1]

    def statuses(self, repo: str, sha: str) -> list[CommitStatus]:
        """Those of a commit, newest first; none of an unknown one."""
        return self._statuses[repo, sha][::-1]

    def everything(self) -> list[CheckRun]:
        """All check runs, oldest first."""
        return sorted((one for runs in self._check_runs.values() for one in runs), key=lambda one: one.id)
