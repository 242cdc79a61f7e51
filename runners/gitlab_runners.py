"""Owns runners at GitLab: one per machine, paused once it runs a job, deleted after it; and queue holders.

A runner's name is its description. Names are not unique at GitLab: a create whose answer was lost may have made a
runner whose token nobody has; `list_runners` shows it, and it is deleted as an orphan.

Deregistering without knowing whether the runner has a job goes: pause (it takes no new job from then on), look at its
jobs, delete. In that order there is no moment in which a job could slip in between the look and the delete. A
runner that `seal` paused needs no second pause, and one whose job is known to be done needs only the delete: create,
pause and delete are then the calls of a normal life. A failure between pause and delete leaves a paused runner, which
must not be counted as capacity; deregister it again. Between pause and look there is a second: a job handed out just
before the pause is shown as the runner's only when the runner has confirmed it (two-phase commit, at once in practice).

GitLab compares tags with case, we without: a runner gets every spelling that jobs were seen to use.

Queue holders: GitLab fails a job that waited an hour while no matching runner was in contact for two. A runner with
the same tags that nobody runs, kept in contact by `POST /runners/verify`, prevents that and can take no job.
"""

import asyncio
import contextlib
import hashlib
from typing import Any

from autoscaler.spi import (
    ForgeOutcomeUnknown,
    ForgeRefused,
    ForgeRunner,
    ForgeUnauthorized,
    ForgeUnavailable,
    Labels,
    Registration,
    RunnerBusy,
    RunnerId,
    RunnerRef,
    Scope,
    Secret,
    Surroundings,
    label_set,
)
from runners.gitlab_errors import Absent, Operation
from runners.gitlab_jobs import JobReader
from runners.gitlab_rest import Rest, Row
from runners.gitlab_scopes import ScopeMap, Target

_MANAGE = "scope manage_runner (or api) and the role Maintainer (project) or Owner (group)"
_CREATE = Operation(
    doing="create a runner",
    needs="scope create_runner (or api) and the role Maintainer (project) or Owner (group)",
    family="registration",
    is_write=True,
    uses_runner_token=True,
)
_PAUSE = Operation(doing="pause a runner", needs=_MANAGE, family="registration", is_write=True, uses_runner_token=True)
_DELETE = Operation(
    doing="delete a runner", needs=_MANAGE, family="registration", is_write=True, uses_runner_token=True
)
_LIST = Operation(doing="list runners", needs=_MANAGE, uses_runner_token=True)
_READ = Operation(doing="read a runner", needs=_MANAGE, uses_runner_token=True)
_JOBS = Operation(doing="list a runner's jobs", needs="scope api and the role Maintainer")
_VERIFY = Operation(
    doing="keep a queue holder in contact",
    needs="nothing more",
    family="registration",
    uses_runner_token=True,
)

HANDOVER_S = 1.0
LABELS_READ_PER_LISTING = 200
"""Lists carry no tags. Those of runners that another process registered are read one by one, once."""
_LIVE_WORDS = frozenset({"pending", "running", "canceling", "preparing", "waiting_for_callback"})


class RunnerDesk:
    """Registers, pauses, deletes and lists the runners of one deployment."""

    def __init__(self, rest: Rest, scopes: ScopeMap, jobs: JobReader, *, url: str, surroundings: Surroundings) -> None:
        self._rest = rest
        self._scopes = scopes
        self._jobs = jobs
        self._url = url
        self._prefix = surroundings.runner_prefix
        self._deployment = surroundings.deployment
        self._clock = surroundings.clock
        self._labels: dict[RunnerId, Labels] = {}
        self._sealed: set[RunnerId] = set()
        self._deleted = 0
        self._holders: dict[str, Secret] = {}
        self._holding = asyncio.Lock()

    async def register(self, *, scope: Scope, name: str, labels: Labels) -> Registration:
        """Create one runner. Raises ForgeError; after ForgeOutcomeUnknown look for the name in `list_runners`."""
        return await self._create(scope, name, labels, run_untagged=not labels)

    async def seal(self, runner: RunnerRef) -> None:
        """Pause a runner, so that it takes no further job. A runner that is gone takes none either."""
        if runner.runner_id not in self._sealed:
            await self._pause(runner)

    async def deregister(self, runner: RunnerRef, *, job_is_done: bool = False) -> None:
        """Delete a runner; absent is success. Raises RunnerBusy. With `job_is_done` its job is known to be over,
        and nothing is asked first."""
        if not job_is_done:
            says_active = False
            if runner.runner_id not in self._sealed:
                paused = await self._pause(runner)
                if paused is None:
                    return
                says_active = paused.get("job_execution_status") == "active"
                if not says_active and paused.get("status") != "never_contacted":
                    await self._clock.sleep(HANDOVER_S)
            if says_active or await self._has_live_job(runner):
                raise RunnerBusy(f"{self._rest.name}: runner {runner.name} ({runner.runner_id}) runs a job")
        await self._delete(runner.runner_id)
        self._holders.pop(runner.name, None)

    async def list_runners(self) -> list[ForgeRunner]:
        """Every runner of ours in every scope, all pages, or raise."""
        before, had_labels, were_sealed = self._deleted, set(self._labels), set(self._sealed)
        rows = await self._list_rows()
        if before != self._deleted:
            # Pages are counted by position: a deletion meanwhile may have moved a runner over a page's edge. What is
            # missing in one pass is in the other.
            rows = {**rows, **await self._list_rows()}
        await self._learn_labels(list(rows))
        seen_running = self._jobs.seen_running()
        for gone in had_labels - rows.keys():
            self._labels.pop(gone, None)
        self._sealed -= were_sealed - rows.keys()
        return [
            ForgeRunner(
                ref=RunnerRef(scope=target.scope, runner_id=runner_id, name=str(row["description"])),
                labels=self._labels.get(runner_id, ()),
                is_online=row.get("status") == "online" or (row.get("status") is None and bool(row.get("online"))),
                # Older versions do not say it in lists: there the last job listings do.
                is_busy=row["job_execution_status"] == "active"
                if "job_execution_status" in row
                else runner_id in seen_running,
            )
            for runner_id, (target, row) in sorted(rows.items(), key=lambda item: int(item[0]))
        ]

    async def hold_queue(self, *, scope: Scope, labels: Labels, name: str) -> None:
        """Keep a never-polling runner of this name and these tags in contact with GitLab."""
        async with self._holding:
            token = self._holders.get(name)
            if token is not None and await self._verify(name, token):
                return
            target = await self._scopes.target(scope)
            # Its token died with the process that made it: a new one takes its place.
            for runner_id, (_, row) in (await self._list_rows([target])).items():
                if row["description"] == name:
                    await self._delete(runner_id)
            # It takes no job anyway, so it may stand for untagged ones too.
            holder = await self._create(scope, name, labels, run_untagged=True)
            self._holders[name] = holder.secret
            if not await self._verify(name, holder.secret):
                raise ForgeUnavailable(f"{self._rest.name}: GitLab does not know the queue holder {name} it just made")

    async def _create(self, scope: Scope, name: str, labels: Labels, *, run_untagged: bool) -> Registration:
        target = await self._scopes.target(scope)
        body: Row = {
            "runner_type": target.runner_type,
            f"{target.kind}_id": target.id,
            "description": name,
            "tag_list": self._jobs.spellings(labels),
            "run_untagged": run_untagged,  # GitLab's default is true.
            "locked": False,
            "paused": False,
        }
        row = await self._rest.post("/user/runners", _CREATE, body)
        token, identifier = row.get("token"), row.get("id")
        if not isinstance(token, str) or not token or not isinstance(identifier, int):
            raise ForgeOutcomeUnknown(f"{self._rest.name}: the answer to creating runner {name} has no id or no token")
        runner_id = RunnerId(str(identifier))
        self._labels[runner_id] = labels
        return Registration(
            ref=RunnerRef(scope=scope, runner_id=runner_id, name=name),
            kind="gitlab",
            secret=Secret(token),
            parameters={"url": self._url},
        )

    async def _pause(self, runner: RunnerRef) -> Row | None:
        """The runner as paused; None where it is gone."""
        try:
            row = await self._rest.put(f"/runners/{runner.runner_id}", _PAUSE, {"paused": True})
        except Absent:
            return None
        self._sealed.add(runner.runner_id)
        return row

    async def _has_live_job(self, runner: RunnerRef) -> bool:
        """Asked without a status filter: a job handed over a moment ago is not `running` yet."""
        query = {"order_by": "id", "sort": "desc"}
        try:
            rows = await self._rest.list(f"/runners/{runner.runner_id}/jobs", _JOBS, query)
        except Absent:
            return False
        return any(str(row.get("status")) in _LIVE_WORDS for row in rows)

    async def _delete(self, runner_id: RunnerId) -> None:
        with contextlib.suppress(Absent):
            await self._rest.delete(f"/runners/{runner_id}", _DELETE)
        self._deleted += 1
        self._labels.pop(runner_id, None)
        self._sealed.discard(runner_id)

    async def _list_rows(self, targets: list[Target] | None = None) -> dict[RunnerId, tuple[Target, Row]]:
        """Our runners by id. A group's list shows its ancestors' runners too: the outermost scope owns them."""
        found: dict[RunnerId, tuple[Target, Row]] = {}
        for target in targets if targets is not None else await self._scopes.targets():
            for row in await self._rest.list(f"{target.path}/runners", _LIST, {"type": target.runner_type}):
                if str(row.get("description") or "").startswith(self._prefix) and isinstance(row.get("id"), int):
                    found.setdefault(RunnerId(str(row["id"])), (target, row))
        return found

    async def _learn_labels(self, runner_ids: list[RunnerId]) -> None:
        unknown = [runner_id for runner_id in runner_ids if runner_id not in self._labels]
        await asyncio.gather(*(self._read_labels(runner_id) for runner_id in unknown[:LABELS_READ_PER_LISTING]))

    async def _read_labels(self, runner_id: RunnerId) -> None:
        try:
            row = await self._rest.get(f"/runners/{runner_id}", _READ)
        except Absent:
            return
        tags: Any = row.get("tag_list") or ()
        self._labels[runner_id] = label_set([str(tag) for tag in tags])

    async def _verify(self, name: str, token: Secret) -> bool:
        """Refresh a holder's contact time. False where GitLab no longer knows it."""
        body = {"token": token.reveal(), "system_id": _system_id(self._deployment, name)}
        try:
            await self._rest.post("/runners/verify", _VERIFY, body)
        except (ForgeUnauthorized, ForgeRefused):
            self._holders.pop(name, None)
            return False
        return True


def _system_id(deployment: str, name: str) -> str:
    """Stable, so that a holder is one manager however often it is verified."""
    return "s_" + hashlib.sha256(f"{deployment}/{name}".encode()).hexdigest()[:12]
