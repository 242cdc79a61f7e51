"""What taking a webhook costs, against a bare aiohttp handler that does the same HMAC and parse."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.children import Child
from benchmarks.figures import Figure, at_least, at_most, percentile, shown
from benchmarks.payloads import SIZE, Deliveries
from benchmarks.sender import Answer, Sender
from benchmarks.site import Secrets

NAME = "webhooks"
CONNECTIONS = 32
BURST_CONNECTIONS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One server under one load."""

    cpu_us: float
    per_s: float
    p99_ms: float


async def run(*, is_quick: bool) -> list[Figure]:
    """12 KB signed webhooks: CPU of the intake beside a bare handler, a burst, rows per commit"""
    count, rounds, burst = (400, 3, 400) if is_quick else (2_000, 5, 2_000)
    known = Secrets.fresh()
    deliveries = Deliveries(known.webhook)
    with tempfile.TemporaryDirectory(prefix="bench-webhooks-") as folder:
        log = Path(folder) / "log"
        bare, bare_ready = await Child.start("bare_child", log=log, folder=folder, secret=known.webhook)
        intake, intake_ready = await Child.start("intake_child", log=log, folder=folder, secret=known.webhook)
        try:
            servers = [(bare, bare_ready["port"], "/bare"), (intake, intake_ready["port"], "/webhooks/github")]
            for child, port, path in servers:  # warm up: imports, first statements, branch predictors
                await _load(child, port, deliveries.take(200, path), CONNECTIONS)
            before = await intake.call("stats")
            pairs = [
                [await _load(child, port, deliveries.take(count, path), CONNECTIONS) for child, port, path in servers]
                for _ in range(rounds)
            ]
            after = await intake.call("stats")
            sender = await Sender.connect(intake_ready["port"], connections=BURST_CONNECTIONS)
            answers = await sender.send(deliveries.take(burst, "/webhooks/github"))
            await sender.aclose()
            _must_be_accepted(answers)
        finally:
            await bare.stop()
            await intake.stop()
    return _figures(pairs, before, after, answers)


async def _load(child: Child, port: int, requests: Sequence[bytes], connections: int) -> Round:
    sender = await Sender.connect(port, connections=connections)
    before = await child.usage()
    answers = await sender.send(requests)
    after = await child.usage()
    await sender.aclose()
    _must_be_accepted(answers)
    took_s = max(a.answered_at for a in answers) - min(a.sent_at for a in answers)
    return Round(
        cpu_us=(after.cpu_s - before.cpu_s) / len(answers) * 1e6,
        per_s=len(answers) / took_s,
        p99_ms=percentile([a.took_s for a in answers], 0.99) * 1000,
    )


def _must_be_accepted(answers: Sequence[Answer]) -> None:
    wrong = [answer.status for answer in answers if answer.status != 202]
    if wrong:
        raise RuntimeError(f"{len(wrong)} of {len(answers)} webhooks were answered {wrong[0]}")


def _figures(
    pairs: list[list[Round]], before: dict[str, int], after: dict[str, int], burst: list[Answer]
) -> list[Figure]:
    bare_us, intake_us = median(bare.cpu_us for bare, _ in pairs), median(intake.cpu_us for _, intake in pairs)
    bare_per_s, intake_per_s = median(bare.per_s for bare, _ in pairs), median(intake.per_s for _, intake in pairs)
    ratio = median(intake.cpu_us / bare.cpu_us for bare, intake in pairs)
    grouped = (after["rows"] - before["rows"]) / (after["commits"] - before["commits"])
    burst_s = max(a.answered_at for a in burst) - min(a.sent_at for a in burst)
    return [
        at_most(
            NAME,
            f"CPU per durable {SIZE:,}-byte webhook over a bare handler's",
            ratio,
            2.5,
            "x",
            baseline=f"{intake_us:.0f} us against {bare_us:.0f} us",
        ),
        at_least(
            NAME, f"rows per commit, {CONNECTIONS} connections", grouped, 8, "rows", baseline="1: a commit for each"
        ),
        at_most(NAME, f"burst of {len(burst):,}, all durable and answered", burst_s, 2, "s"),
        shown(
            NAME,
            f"throughput, {CONNECTIONS} connections",
            f"{intake_per_s:,.0f} per s, p99 {median(intake.p99_ms for _, intake in pairs):.0f} ms",
            baseline=f"bare: {bare_per_s:,.0f} per s, p99 {median(bare.p99_ms for bare, _ in pairs):.0f} ms",
        ),
    ]
