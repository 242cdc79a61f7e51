"""The runner records of the sandbox's GitLab: creation, tokens, contact times and the rule which jobs they may take.

Owns runners and their machines (GitLab: managers); knows nothing of job states. Matching rule: GitLab spec 1.6.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autoscaler.sandbox.gitlab_model import Contact, GitLabRefusal, Group, Machine, Project, Runner, RunnerType

MAX_RUNNERS = 1000
"""Runners per group or project; those without contact for `STALE_S` do not count (GitLab spec 2.1)."""
MAX_TAGS = 50
ONLINE_S = 2 * 3600.0
STALE_S = 7 * 86400.0
MIN_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerRequest:
    """The fields of POST /user/runners. `run_untagged` defaults to true, as GitLab's does."""

    runner_type: RunnerType
    scope_id: int | None = None
    description: str = ""
    tags: Sequence[str] = ()
    run_untagged: bool = True
    locked: bool = False
    paused: bool = False
    access_level: str = "not_protected"
    maximum_timeout: int | None = None
    maintenance_note: str = ""


def runner_status(runner: Runner, now: float) -> str:
    """`never_contacted`, `online`, `offline` or `stale`. Online proves little: it lasts two hours (spec 2.3)."""
    if runner.contacted_at is None:
        return "stale" if now - runner.created_at > STALE_S else "never_contacted"
    return contact_status(runner.contacted_at, now)


def contact_status(contacted_at: float, now: float) -> str:
    """The same for a contact time."""
    silent_s = now - contacted_at
    return "online" if silent_s < ONLINE_S else "offline" if silent_s < STALE_S else "stale"


class Runners:
    """All runner records of one GitLab, by id and by token."""

    def __init__(self, groups: Mapping[int, Group], projects: Mapping[int, Project], secret: str) -> None:
        self._groups = groups
        self._projects = projects
        self._secret = secret.encode()
        self._last_id = 9000
        self._last_machine_id = 0
        self.by_id: dict[int, Runner] = {}
        self._by_token: dict[str, Runner] = {}

    def secret(self, prefix: str, number: int) -> str:
        """A token that cannot be guessed without the world's seed and is the same in every run of it."""
        digest = hmac.new(self._secret, f"{prefix}{number}".encode(), hashlib.sha256)
        return prefix + digest.hexdigest()[:20]

    def create(self, request: RunnerRequest, now: float) -> Runner:
        """Make a runner. Raises GitLabRefusal 400 for what does not validate, 404 for an unknown scope."""
        self._check(request, now)
        self._last_id += 1
        runner = Runner(
            id=self._last_id,
            token=self.secret("glrt-", self._last_id),
            runner_type=request.runner_type,
            scope_id=request.scope_id,
            description=request.description,
            tags=frozenset(request.tags),
            run_untagged=request.run_untagged,
            locked=request.locked,
            paused=request.paused,
            access_level=request.access_level,
            maximum_timeout=request.maximum_timeout,
            maintenance_note=request.maintenance_note,
            created_at=now,
        )
        self.by_id[runner.id] = runner
        self._by_token[runner.token] = runner
        return runner

    def _check(self, request: RunnerRequest, now: float) -> None:
        known: Mapping[int, object]
        match request.runner_type:
            case RunnerType.INSTANCE:
                known, noun = {}, "instance"
            case RunnerType.GROUP:
                known, noun = self._groups, "group"
            case RunnerType.PROJECT:
                known, noun = self._projects, "project"
        if request.runner_type is RunnerType.INSTANCE:
            if request.scope_id is not None:
                raise GitLabRefusal(400, {"runner": ["cannot have a scope assigned"]})
        elif request.scope_id is None:
            raise GitLabRefusal(400, f"400 Bad request - {noun}_id is missing")
        elif request.scope_id not in known:
            raise GitLabRefusal(404, f"404 {noun.capitalize()} Not Found")
        check_fields(
            tags=request.tags,
            run_untagged=request.run_untagged,
            access_level=request.access_level,
            maximum_timeout=request.maximum_timeout,
            maintenance_note=request.maintenance_note,
        )
        if request.scope_id is not None and self._counted(request, now) >= MAX_RUNNERS:
            text = f"Maximum number of ci registered {noun} runners ({MAX_RUNNERS}) exceeded"
            raise GitLabRefusal(400, {f"runner_{'namespaces' if noun == 'group' else 'projects'}.base": [text]})

    def _counted(self, request: RunnerRequest, now: float) -> int:
        return sum(
            1
            for runner in self.by_id.values()
            if runner.runner_type is request.runner_type
            and runner.scope_id == request.scope_id
            and now - (runner.contacted_at or runner.created_at) <= STALE_S
        )

    def get(self, runner_id: int) -> Runner:
        """The runner; GitLabRefusal 404 when there is none."""
        runner = self.by_id.get(runner_id)
        if runner is None:
            raise GitLabRefusal(404, "404 Runner Not Found")
        return runner

    def authenticate(self, token: str) -> Runner:
        """The runner of a token; GitLabRefusal 403 when there is none."""
        runner = self._by_token.get(token)
        if runner is None:
            raise GitLabRefusal(403, "403 Forbidden - invalid token")
        return runner

    def delete(self, runner: Runner) -> None:
        """Forget the runner; its token is worth nothing from now on."""
        del self.by_id[runner.id]
        del self._by_token[runner.token]

    def touch(self, runner: Runner, system_id: str, contact: Contact | None, now: float) -> Machine:
        """Write a contact, creating the machine when this `system_id` is new. GitLabRefusal 400 without one."""
        if not system_id or len(system_id) > 64:
            raise GitLabRefusal(400, "400 Bad request - system_id is missing or longer than 64 characters")
        machine = runner.machines.get(system_id)
        if machine is None:
            self._last_machine_id += 1
            machine = Machine(id=self._last_machine_id, system_id=system_id, created_at=now, contacted_at=now)
            runner.machines[system_id] = machine
        if contact is not None:
            machine.version, machine.revision = contact.version, contact.revision
            machine.platform, machine.architecture = contact.platform, contact.architecture
        machine.contacted_at = runner.contacted_at = now
        return machine

    def may_take(self, runner: Runner, project_id: int, tags: frozenset[str]) -> bool:
        """GitLab's rule (spec 1.6): not paused, in scope, job tags within runner tags, untagged only if allowed.

        Refs of the sandbox are not protected, so a `ref_protected` runner takes nothing.
        """
        if runner.paused or runner.access_level == "ref_protected" or not tags <= runner.tags:
            return False
        return bool(tags or runner.run_untagged) and self.in_scope(runner, project_id)

    def in_scope(self, runner: Runner, project_id: int) -> bool:
        """Whether the runner is available to the project at all."""
        match runner.runner_type:
            case RunnerType.INSTANCE:
                return True
            case RunnerType.PROJECT:
                return runner.scope_id == project_id
            case RunnerType.GROUP:
                group_id: int | None = self._projects[project_id].group_id
                while group_id is not None:
                    if group_id == runner.scope_id:
                        return True
                    group_id = self._groups[group_id].parent_id
                return False


def check_fields(
    *, tags: Sequence[str], run_untagged: bool, access_level: str, maximum_timeout: int | None, maintenance_note: str
) -> None:
    """Validate what create and update share; GitLabRefusal 400 names the field as Rails does."""
    problems: dict[str, list[str]] = {}
    if len(set(tags)) > MAX_TAGS:
        problems["tags_list"] = [f"Too many tags specified. Please limit the number of tags to {MAX_TAGS}"]
    elif not tags and not run_untagged:
        problems["tags_list"] = ["can not be empty when runner is not allowed to pick untagged jobs"]
    if access_level not in {"not_protected", "ref_protected"}:
        problems["access_level"] = ["does not have a valid value"]
    if maximum_timeout is not None and maximum_timeout < MIN_TIMEOUT_S:
        problems["maximum_timeout"] = ["needs to be at least 10 minutes"]
    if len(maintenance_note) > 1024:
        problems["maintenance_note"] = ["is too long (maximum is 1024 characters)"]
    if problems:
        raise GitLabRefusal(400, problems)
