"""What the machine's surroundings announce: reclaims, recommendations to leave, maintenance.

Owns the threads that look, each second (Google's server: by waiting for a change), and turns what they see into
`Notice`s, each once. It decides nothing: `Life` does.
"""

# pathlib alone would take a megabyte for every machine:
# ruff: noqa: PTH123

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from runners.agent.client import Unreachable
from runners.agent.metadata import AwsMetadata, GceMetadata, Seen

_POLL_S = 1.0
_LOCAL_POLL_S = 0.5

GCE_NOTICE_S = 30.0
"""A preempted machine gets 30 s at most, unless its launch asked for an announcement (attribute below)."""
_GCE_MAINTENANCE_S = 60.0

_HALTING = frozenset(("instance-reboot", "system-reboot", "instance-retirement", "instance-stop"))
"""Codes of EC2's scheduled events that no running job survives; `system-maintenance` is a short loss of network."""


class Notice(NamedTuple):
    """`kind` is reclaim, rebalance or maintenance; `is_final` says that no job outlives `reclaim_at` (unix seconds);
    `source` is what said it."""

    reclaim_at: float
    kind: str
    source: str
    is_final: bool


Tell = Callable[[Notice], None]
Watch = Callable[[Tell], None]
"""Looks for ever, in a thread of its own, and tells."""


def watch_file(path: str) -> Watch:
    """The file in which the host of a local machine announces its reclaim, once."""

    def watch(tell: Tell) -> None:
        while True:
            try:
                with open(path, encoding="utf-8") as file:
                    reclaim_at = float(json.load(file)["reclaim_at"])
            except (OSError, ValueError, KeyError):
                time.sleep(_LOCAL_POLL_S)
                continue
            tell(Notice(reclaim_at, "reclaim", "host", True))
            return

    return watch


def start(watches: list[Watch], tell: Tell) -> None:
    """One thread for each; a notice that several tell, or one tells again, is told on once."""
    lock = threading.Lock()
    told: set[tuple[str, str, int]] = set()

    def tell_once(notice: Notice) -> None:
        key = (notice.kind, notice.source, round(notice.reclaim_at))
        with lock:
            is_new = key not in told
            told.add(key)
        if is_new:
            tell(notice)

    for watch in watches:
        threading.Thread(target=watch, args=(tell_once,), name="notices", daemon=True).start()


# --------------------------------------------------------------------------- EC2


def watch_aws(metadata: AwsMetadata) -> Watch:
    """EC2's three announcements, each second."""
    looks = (
        ("/latest/meta-data/spot/instance-action", _instance_action),
        ("/latest/meta-data/events/recommendations/rebalance", _rebalance),
        ("/latest/meta-data/events/maintenance/scheduled", _scheduled),
    )

    def watch(tell: Tell) -> None:
        while True:
            for path, parse in looks:
                try:
                    text = metadata.get(path)
                    for notice in parse(json.loads(text)) if text else []:
                        tell(notice)
                except (Unreachable, ValueError, LookupError, TypeError, AttributeError):
                    continue  # it is asked again in a second; the cloud's own listing tells as well
            time.sleep(_POLL_S)

    return watch


def _instance_action(said: Any) -> list[Notice]:
    """`{"action": "terminate" | "stop" | "hibernate", "time": "2017-09-18T08:22:00Z"}`."""
    return [Notice(_iso(said["time"]), "reclaim", "instance-action", True)]


def _rebalance(said: Any) -> list[Notice]:
    """`{"noticeTime": "2020-10-27T08:22:00Z"}`: how likely a loss is, it does not say."""
    return [Notice(_iso(said["noticeTime"]), "rebalance", "rebalance", False)]


def _scheduled(said: Any) -> list[Notice]:
    """A list of `{"NotBefore": "21 Jan 2019 09:00:43 GMT", "Code": "system-reboot", "State": "active"}`."""
    return [
        Notice(_clf(event["NotBefore"]), "maintenance", event["Code"], event["Code"] in _HALTING)
        for event in said
        if event.get("State") == "active"
    ]


def _iso(text: str) -> float:
    return _unix_seconds(text, "%Y-%m-%dT%H:%M:%SZ")


def _clf(text: str) -> float:
    return _unix_seconds(text, "%d %b %Y %H:%M:%S GMT")


def _unix_seconds(text: str, form: str) -> float:
    import calendar  # only where it is used: as much memory as the rest of this module

    return float(calendar.timegm(time.strptime(text, form)))


# --------------------------------------------------------------------------- Compute Engine


def watch_gce_preemption(metadata: GceMetadata) -> Watch:
    """`instance/preempted` turns TRUE when the machine is taken, or `autoscaler-notice-s` seconds before."""

    def parse(value: str) -> Notice | None:
        if value.upper() != "TRUE":
            return None
        try:
            announced_s = float(metadata.get("attributes/autoscaler-notice-s") or GCE_NOTICE_S)
        except (Unreachable, ValueError):
            announced_s = GCE_NOTICE_S
        return Notice(time.time() + announced_s, "reclaim", "preempted", True)

    return _watch_gce(metadata, "preempted", parse)


def watch_gce_maintenance(metadata: GceMetadata) -> Watch:
    """`instance/maintenance-event`: NONE, MIGRATE_ON_HOST_MAINTENANCE or TERMINATE_ON_HOST_MAINTENANCE."""

    def parse(value: str) -> Notice | None:
        if value in ("", "NONE"):
            return None
        return Notice(time.time() + _GCE_MAINTENANCE_S, "maintenance", value.lower(), value.startswith("TERMINATE"))

    return _watch_gce(metadata, "maintenance-event", parse)


def _watch_gce(metadata: GceMetadata, path: str, parse: Callable[[str], Notice | None]) -> Watch:
    def watch(tell: Tell) -> None:
        last: Seen | None = None
        value = ""
        while True:
            try:
                seen = metadata.look(path, after=last)
            except Unreachable:
                time.sleep(_POLL_S)
                continue
            if seen is not None and seen.value != value:
                value = seen.value
                notice = parse(value)
                if notice is not None:
                    tell(notice)
            if seen is None or not seen.etag or seen == last:
                # Nothing to wait for, or it came back early: never ask faster than each second.
                time.sleep(_POLL_S)
            last = seen if seen is not None and seen.etag else None

    return watch
