"""What a demo's report says of two kinds of decisions: spills, and predictions of waits. Pure.

Both are held against what happened, apart from how the daemon scores itself: a spill is a machine on demand, and the
cause on its history names why; a prediction stands on its job's row, and the wait is what its forge says.
"""

import math
import re
from collections import Counter
from typing import Any

from autoscaler.sandbox.demo_costs import capacity_type_of
from autoscaler.sandbox.demo_records import DemoRecords
from autoscaler.spi import CapacityType

BINS = 10
_PREDICTED = re.compile(r"on_demand because (?P<outage>.*?)predicted breach \d\.\d\d on spot, \d\.\d\d on demand")
_BUDGET = re.compile(r"on_demand because at most \d+% of the machines may be spot")
_ATTEMPT = re.compile(r"on_demand from attempt \d+ on")


def spill_of(cause: str) -> str:
    """Why a machine is on demand, by the cause of its launch: a predicted breach, an outage of spot with the breach
    predicted for it, the error budget, an attempt rule; "unnamed" where it says none of them."""
    if (found := _PREDICTED.search(cause)) is not None:
        return "outage" if found["outage"] else "breach"
    if _BUDGET.search(cause):
        return "error_budget"
    return "attempt" if _ATTEMPT.search(cause) else "unnamed"


def spill_document(records: DemoRecords) -> dict[str, Any]:
    """`spills` are machines on demand because of a predicted breach, or for no reason told; `spills_by` has all that
    are on demand: also those of lost jobs by their attempt, and those that an error budget asks for."""
    found: Counter[str] = Counter()
    for row in records.instances:
        moves = records.moves.get(row.id, ())
        if row.provider_id is not None and moves and capacity_type_of(row) is CapacityType.ON_DEMAND:
            found[spill_of(moves[0].cause)] += 1
    return {
        "spills": sum(found[kind] for kind in ("breach", "outage", "unnamed")),
        "spills_by": dict(sorted(found.items())),
        "spills_unnamed": found["unnamed"],
    }


def prediction_document(records: DemoRecords) -> dict[str, Any]:
    """How good predicted breaches were: mean squared error (Brier), and by tenths predicted against observed."""
    attempts = {
        (job.forge, id_): attempt
        for job in records.jobs
        for id_, attempt in zip(job.forge_job_ids, job.attempts, strict=True)
    }
    pairs = []
    for row in records.stored_jobs:
        attempt = attempts.get((row.forge, row.forge_job_id))
        if row.prediction is None or attempt is None or attempt.queued_at is None or attempt.started_at is None:
            continue
        is_late = attempt.started_at - attempt.queued_at > row.prediction.target_s
        pairs.append((row.prediction.breach, is_late))
    tenths: dict[int, list[tuple[float, bool]]] = {}
    for breach, is_late in pairs:
        tenths.setdefault(min(BINS - 1, int(breach * BINS)), []).append((breach, is_late))
    return {
        "brier": round(math.fsum((breach - late) ** 2 for breach, late in pairs) / len(pairs), 4) if pairs else None,
        "reliability": [
            {
                "predicted": round(math.fsum(breach for breach, _ in found) / len(found), 4),
                "observed": round(sum(late for _, late in found) / len(found), 4),
                "jobs": len(found),
            }
            for _, found in sorted(tenths.items())
        ],
    }
