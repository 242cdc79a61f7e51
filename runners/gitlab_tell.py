"""Owns telling people at GitLab what happened to a job: a note on the merge request of its pipeline.

The merge request is the one that the pipeline's ref names (`refs/merge-requests/N/head`), else the newest open one that
its commit belongs to. A pipeline without one has no place where people would read it. The note ends with a comment
that GitLab does not show and that carries the telling's key; it is looked for among the newest hundred before one is
written, and only in our own notes: anybody who comments could write it as well, and nobody would be told. Facts: the
notes and merge request API; 60 notes a minute is a fifth of what GitLab takes by default.
"""

import re
from collections.abc import Sequence

from autoscaler.calls import WindowLimit
from autoscaler.spi import Clock, ForgeRefusedForGood, JobNotFound, RateLimited, Telling
from runners.gitlab_errors import Absent, Operation
from runners.gitlab_rest import Query, Rest, Row
from runners.gitlab_scopes import project_path

_NEEDS = "scope api and the role Reporter in the project"
_PIPELINE = Operation(doing="read a pipeline", needs=_NEEDS)
_FIND = Operation(doing="look for a commit's merge requests", needs=_NEEDS)
_LOOK = Operation(doing="look whether people were told", needs=_NEEDS)
_WHO = Operation(doing="learn whose token it is", needs="scope api")
_WRITE = Operation(doing="tell people what happened to a job", needs=_NEEDS, is_write=True)

_MERGE_REF = re.compile(r"refs/merge-requests/(\d+)/(?:head|merge|train)")
NOTES_PER_MINUTE = 60
CALLS_NEEDED = 4
SPARE_AGAIN_S = 15.0
"""GitLab counts by the minute."""


class Teller:
    """Writes notes for one forge."""

    def __init__(self, rest: Rest, clock: Clock) -> None:
        self._rest = rest
        self._clock = clock
        self._notes = WindowLimit(limit=NOTES_PER_MINUTE, window_s=60)
        self._user_id: int | None = None

    async def tell(self, telling: Telling) -> None:
        """Raises JobNotFound, ForgeRefusedForGood where there is no merge request, RateLimited."""
        now = self._clock.monotonic()
        if self._rest.budgets.spare_calls() < CALLS_NEEDED:
            text = f"{self._rest.name}: others need the budget: people are told later"
            raise RateLimited(text, retry_after_s=SPARE_AGAIN_S, family="notes")
        if not self._notes.take(now):
            wait_s = self._notes.wait_s(now)
            text = f"{self._rest.name}: {NOTES_PER_MINUTE} notes a minute, again in {wait_s:.0f} s"
            raise RateLimited(text, retry_after_s=wait_s, family="notes")
        path = project_path(telling.repo)
        notes = f"{path}/merge_requests/{await self._merge_request(path, telling)}/notes"
        mark = f"<!-- autoscaler:{telling.key} -->"
        newest: Query = {"order_by": "created_at", "sort": "desc"}
        try:
            known = await self._rest.page(notes, _LOOK, newest)
            marked = [note for note in known if mark in str(note.get("body"))]
            if marked and await self._wrote_any(marked):
                return
            await self._rest.post(notes, _WRITE, {"body": f"**{telling.title}**\n\n{telling.text}\n\n{mark}"})
        except Absent as error:
            raise ForgeRefusedForGood(str(error)) from error

    async def _wrote_any(self, notes: Sequence[Row]) -> bool:
        if self._user_id is None:
            self._user_id = int((await self._rest.get("/user", _WHO))["id"])
        return any((note.get("author") or {}).get("id") == self._user_id for note in notes)

    async def _merge_request(self, path: str, telling: Telling) -> int:
        try:
            pipeline = await self._rest.get(f"{path}/pipelines/{telling.run_id}", _PIPELINE)
        except Absent as error:
            raise JobNotFound(str(error)) from error
        if named := _MERGE_REF.fullmatch(str(pipeline.get("ref"))):
            return int(named[1])
        sha = telling.commit or str(pipeline.get("sha") or "")
        try:
            rows = await self._rest.page(f"{path}/repository/commits/{sha}/merge_requests", _FIND) if sha else []
        except Absent as error:
            raise ForgeRefusedForGood(str(error)) from error
        found = [int(row["iid"]) for row in rows if row.get("state") == "opened" and isinstance(row.get("iid"), int)]
        if not found:
            raise ForgeRefusedForGood(
                f"{self._rest.name}: pipeline {telling.run_id} of {telling.repo} belongs to no open merge request"
            )
        return max(found)
