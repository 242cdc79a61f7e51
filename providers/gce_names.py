"""Names, labels and request ids of our machines, all computed: a repeat finds what an earlier try made.

A name is "<deployment>-<hash of it>-<hash of the batch token>-<index>": it fits RFC 1035, tells our deployment's
machines from all others by its beginning alone, and is never used again, as tokens are random. Names are unique in
their zone only, so an id is "zone/name".
"""

import hashlib
import re
import uuid
from dataclasses import dataclass

from autoscaler.spi import BatchToken, CapacityType, ProviderId

DEPLOYMENT = "autoscaler-deployment"
POOL = "autoscaler-pool"
BATCH = "autoscaler-batch"
STOPPABLE = "autoscaler-stoppable"
NOTICE = "autoscaler-notice-s"
"""Seconds from "preempted" to the end, for the machine's agent."""

_ID = re.compile(r"([a-z][a-z0-9-]*-[a-z])/([a-z](?:[a-z0-9-]{0,61}[a-z0-9])?)")
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,61}[a-z0-9]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a ProviderId says."""

    zone: str
    name: str

    @property
    def provider_id(self) -> ProviderId:
        return ProviderId(f"{self.zone}/{self.name}")


def place_of(provider_id: str) -> Place | None:
    """None for what was never an id of ours."""
    found = _ID.fullmatch(provider_id)
    return Place(zone=found[1], name=found[2]) if found else None


def place_in(link: str) -> Place | None:
    """The machine that a link of the API names, as in ".../zones/Z/instances/N"."""
    parts = link.split("/")
    if len(parts) < 4 or parts[-4] != "zones" or parts[-2] != "instances":
        return None
    return place_of(f"{parts[-3]}/{parts[-1]}")


def label(text: str) -> str:
    """A label value for any text: itself where it is one, else made into one, with a hash to keep it apart."""
    if _LABEL.fullmatch(text):
        return text
    return f"{_slug(text, 50)}-{_hash(text, 8)}"


def name_prefix(deployment: str) -> str:
    """What the names of all machines of a deployment begin with, and of no other."""
    return f"{_slug(deployment, 20)}-{_hash(deployment, 8)}-"


def names(deployment: str, token: BatchToken, count: int) -> list[str]:
    beginning = f"{name_prefix(deployment)}{_hash(token, 16)}"
    return [f"{beginning}-{index}" for index in range(count)]


def request_id(deployment: str, token: BatchToken, region: str, capacity_type: CapacityType, *, attempt: int) -> str:
    """The same for a repeat of the same attempt, whatever else has changed: Google takes a request once."""
    digest = hashlib.sha256(f"{deployment}/{token}/{region}/{capacity_type}/{attempt}".encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def _slug(text: str, length: int) -> str:
    kept = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (kept if kept[:1].isalpha() else f"x{kept}")[:length].rstrip("-")


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
