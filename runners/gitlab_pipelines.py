"""What a pipeline's jobs say about a person's cancel, and what a requeue of several of them came to. Pure; rows as
GitLab lists them, retried ones included.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from autoscaler.spi import (
    AlreadyRequeued,
    ForgeError,
    ForgeRefusedForGood,
    ForgeUnavailable,
    JobNotFound,
    NotYet,
    RateLimited,
    RequeueResult,
)

Row = Mapping[str, Any]

CANCEL_AGAIN_S = 60.0
"""Nobody waits for the end of a pipeline that nothing can serve."""
_CANCELLED = ("canceling", "canceled")
_ALIVE = ("created", "waiting_for_resource", "preparing", "waiting_for_callback", "pending", "running")


def was_cancelled_by_somebody(
    pipeline: Mapping[str, Row], lost: Collection[str], *, spared: Collection[str] = ()
) -> bool:
    """Whether a pipeline was cancelled as a whole, by a person or for a newer one. We cancel lost jobs alone, those
    that are `spared` another attempt too: with another one cancelled since and none alive, somebody wanted none of them
    any more."""
    if any(pipeline[id_].get("status") == "running" for id_ in lost if id_ in pipeline):
        return False  # cancelled with its pipeline it would be `canceling`: somebody cancelled the other job alone
    newest: dict[str, int] = {}
    for id_, row in pipeline.items():
        newest[str(row.get("name"))] = max(newest.get(str(row.get("name")), 0), int(id_))
    others = [
        row for id_, row in pipeline.items() if int(id_) in newest.values() and id_ not in lost and id_ not in spared
    ]
    began = min((str(pipeline[id_].get("started_at") or "") for id_ in lost if id_ in pipeline), default="")
    cancelled = [row for row in others if row.get("status") in _CANCELLED and _ended_after(row, began)]
    return bool(cancelled) and not any(row.get("status") in _ALIVE for row in others)


def check_nothing_else_lives(pipeline: Mapping[str, Row], run_id: str, job_ids: Collection[str]) -> None:
    """Raises NotYet where a pipeline has a living job beside these. One that is `created` waits for others of it."""
    alive = [id_ for id_, row in pipeline.items() if row.get("status") in _ALIVE[1:] and id_ not in job_ids]
    if alive:
        raise NotYet(f"{len(alive)} other jobs of pipeline {run_id} are not done", retry_after_s=CANCEL_AGAIN_S)


@dataclass(slots=True)
class Retries:
    """Each lost job is retried by itself: what GitLab says of one (a protected environment, say) holds up no other."""

    successors: dict[str, str] = field(default_factory=dict)
    made_one: bool = False
    _troubles: dict[str, ForgeError] = field(default_factory=dict)

    def found(self, job_id: str, successor: str, *, is_made: bool) -> None:
        self.successors[job_id] = successor
        self.made_one = self.made_one or is_made

    def failed(self, job_id: str, error: ForgeError) -> bool:
        """Whether to go on: a GitLab that answers nobody is left alone."""
        self._troubles[job_id] = error
        return not isinstance(error, RateLimited | ForgeUnavailable)

    def result(self, asked: Collection[str]) -> RequeueResult:
        """What it came to. Raises what kept all of them from running again, and AlreadyRequeued."""
        refused = {
            id_: error for id_, error in self._troubles.items() if isinstance(error, JobNotFound | ForgeRefusedForGood)
        }
        waits = [error for id_, error in self._troubles.items() if id_ not in refused]
        if not self.successors and self._troubles:
            raise (waits or list(self._troubles.values()))[0]
        later = frozenset(asked) - self.successors.keys() - refused.keys()
        if not (self.made_one or later or refused):
            raise AlreadyRequeued(
                f"{', '.join(asked)} were requeued before",
                successor=next(iter(self.successors.values())) if len(self.successors) == 1 else "",
            )
        soonest = min((error.retry_after_s for error in waits if isinstance(error, NotYet)), default=20.0)
        return RequeueResult(
            successors=self.successors,
            later=later,
            later_s=soonest,
            refused={id_: str(error) for id_, error in refused.items()},
        )


def _ended_after(row: Row, began: str) -> bool:
    """Instants of one GitLab are all of one form, so that they compare as text."""
    ended = row.get("finished_at")
    return ended is None or str(ended) >= began
