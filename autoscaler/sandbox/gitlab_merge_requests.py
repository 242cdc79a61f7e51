"""The merge requests of the sandbox's GitLab and what people write under them.

Pure, as the world that owns it. A pipeline whose ref is `refs/merge-requests/N/head` runs for merge request N, which
exists from then on; a branch's merge request is opened by `open`.
"""

import itertools
import re
from dataclasses import dataclass, field

from autoscaler.sandbox.gitlab_model import GitLabRefusal, Pipeline, User

MERGE_REF = re.compile(r"refs/merge-requests/(\d+)/(?:head|merge|train)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One comment."""

    id: int
    body: str
    author: User
    created_at: float


@dataclass(slots=True, kw_only=True)
class MergeRequest:
    """One merge request of a project. `commits` are those that its pipelines tested."""

    project_id: int
    iid: int
    source_branch: str
    is_open: bool = True
    commits: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)


class MergeRequests:
    """Those of one GitLab."""

    def __init__(self) -> None:
        self._by_iid: dict[tuple[int, int], MergeRequest] = {}
        self._note_ids = itertools.count(900_001)

    def pipeline_made(self, pipeline: Pipeline) -> None:
        """A pipeline tests its commit for every merge request that it belongs to."""
        if found := MERGE_REF.fullmatch(pipeline.ref):
            self._of(pipeline.project_id, int(found[1])).commits.add(pipeline.sha)
        for one in self._by_iid.values():
            if one.project_id == pipeline.project_id and one.source_branch == pipeline.ref:
                one.commits.add(pipeline.sha)

    def open(self, project_id: int, source_branch: str) -> MergeRequest:
        """Somebody asks for a branch to be merged."""
        iid = max((iid for project, iid in self._by_iid if project == project_id), default=0) + 1
        made = self._of(project_id, iid)
        made.source_branch = source_branch
        return made

    def get(self, project_id: int, iid: int) -> MergeRequest:
        """One of a project; GitLabRefusal 404."""
        found = self._by_iid.get((project_id, iid))
        if found is None:
            raise GitLabRefusal(404, "404 Not found")
        return found

    def of_commit(self, project_id: int, sha: str) -> list[MergeRequest]:
        """Those that a commit belongs to, newest first."""
        return [one for one in self._newest_first() if one.project_id == project_id and sha in one.commits]

    def add_note(self, to: MergeRequest, body: str, author: User, now: float) -> Note:
        """A comment; GitLabRefusal 400 for an empty one."""
        if not body.strip():
            raise GitLabRefusal(400, '400 Bad request - Note {:note=>["can\'t be blank"]}')
        note = Note(id=next(self._note_ids), body=body, author=author, created_at=now)
        to.notes.append(note)
        return note

    def everything(self) -> list[Note]:
        """All comments, oldest first."""
        return sorted((note for one in self._by_iid.values() for note in one.notes), key=lambda note: note.id)

    def _newest_first(self) -> list[MergeRequest]:
        return sorted(self._by_iid.values(), key=lambda one: -one.iid)

    def _of(self, project_id: int, iid: int) -> MergeRequest:
        made = MergeRequest(project_id=project_id, iid=iid, source_branch=f"merge-request-{iid}")
        return self._by_iid.setdefault((project_id, iid), made)
