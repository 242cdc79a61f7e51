"""Faults that the sandbox's forge faces commit on purpose, seeded so that a run can be repeated.

Owns the shares and the dice. A face asks before it sends or answers; what the fault looks like is the face's
own protocol.
"""

import random
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Faults:
    """Shares from 0 to 1; mutable, so that a test can end the faults while the face runs.

    `lost_webhook`: share of webhooks that are never sent and leave no delivery record.
    `forge_error`: share of API calls answered with 502 before they take effect.
    """

    lost_webhook: float = 0
    forge_error: float = 0
    seed: int = 0

    def dice(self, name: str) -> random.Random:
        """A random stream of its own for each use, so that one use's draws do not shift another's."""
        return random.Random(f"{self.seed}/{name}")  # noqa: S311 - repeatable faults, not secrets
