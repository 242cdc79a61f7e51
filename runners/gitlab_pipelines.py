"""What a pipeline's jobs say about a person's cancel. Pure; rows as GitLab lists them, retried ones included."""

from collections.abc import Collection, Mapping
from typing import Any

Row = Mapping[str, Any]

_CANCELLED = ("canceling", "canceled")
_ALIVE = ("created", "waiting_for_resource", "preparing", "waiting_for_callback", "pending", "running")


def was_cancelled_by_somebody(
    pipeline: Mapping[str, Row], lost: Collection[str], *, spared: Collection[str] = ()
) -> bool:
    """Whether a pipeline was cancelled as a whole, by a person or for a newer one. We cancel lost jobs alone, those
    that are `spared` another attempt too: with another one cancelled since and none alive, somebody wanted none of them
    any more."""
    newest: dict[str, int] = {}
    for id_, row in pipeline.items():
        newest[str(row.get("name"))] = max(newest.get(str(row.get("name")), 0), int(id_))
    others = [
        row for id_, row in pipeline.items() if int(id_) in newest.values() and id_ not in lost and id_ not in spared
    ]
    began = min((str(pipeline[id_].get("started_at") or "") for id_ in lost if id_ in pipeline), default="")
    cancelled = [row for row in others if row.get("status") in _CANCELLED and _ended_after(row, began)]
    return bool(cancelled) and not any(row.get("status") in _ALIVE for row in others)


def _ended_after(row: Row, began: str) -> bool:
    """Instants of one GitLab are all of one form, so that they compare as text."""
    ended = row.get("finished_at")
    return ended is None or str(ended) >= began
