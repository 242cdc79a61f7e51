"""What goes wrong in a simulation, drawn from its seed: roads, webhooks, machines, the store and the daemon itself.

Each seed enables about half of the kinds of fault, so that some seeds see one kind alone and others all together
("swarm testing"). Every fault that strikes is written to a log, which a failing seed prints.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

from autoscaler.sandbox.inprocess import Fate


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRates:
    """Shares from 0 to 1 unless named otherwise; times in seconds.

    `request_lost` .. `silent` are shares of calls of any forge or provider, `listing_failed` of listings on top.
    `outages` are (target, from, to); while one lasts, every call of that target is lost. `store_outages` likewise.
    `deaths` is the share of machines that die by themselves at a random time, `reclaims` of those that the cloud takes:
    `no_notice` of these without a word; of the others `agent_deaf` agents hear nothing, and messages are lost, late or
    doubled. `crashes` is how often the daemon is
    killed. `latency` is what one way of a call takes at least and at most, `store_latency` what a commit takes.
    """

    latency: tuple[float, float] = (0.01, 0.2)
    store_latency: tuple[float, float] = (0.001, 0.01)
    request_lost: float = 0.0
    answer_lost: float = 0.0
    limited: float = 0.0
    silent: float = 0.0
    listing_failed: float = 0.0
    webhook_lost: float = 0.0
    webhook_doubled: float = 0.0
    webhook_late: float = 0.0
    agent_lost: float = 0.0
    slow_boot: float = 0.0
    silent_boot: float = 0.0
    refused: float = 0.0
    deaths: float = 0.0
    reclaims: float = 0.0
    no_notice: float = 0.0
    agent_deaf: float = 0.0
    message_lost: float = 0.0
    message_late: float = 0.0
    message_doubled: float = 0.0
    shown_late_s: float = 0.0
    crashes: int = 0
    outages: tuple[tuple[str, float, float], ...] = ()
    store_outages: tuple[tuple[float, float], ...] = ()


NO_FAULTS = FaultRates()
_WORST = FaultRates(
    request_lost=0.12,
    answer_lost=0.08,
    limited=0.05,
    silent=0.01,
    listing_failed=0.25,
    webhook_lost=0.4,
    webhook_doubled=0.3,
    webhook_late=0.4,
    agent_lost=0.2,
    slow_boot=0.3,
    silent_boot=0.15,
    refused=0.3,
    deaths=0.25,
    reclaims=0.5,
    no_notice=0.6,
    agent_deaf=0.5,
    message_lost=0.6,
    message_late=0.5,
    message_doubled=0.5,
    shown_late_s=6.0,
)


def rates_of(dice: random.Random, *, quiet_at: float, targets: tuple[str, ...]) -> FaultRates:
    """The faults of one seed: about half of the kinds, each up to its worst."""
    drawn: dict[str, float] = {}
    for kind in fields(FaultRates):
        worst = getattr(_WORST, kind.name)
        share, is_on = dice.random(), dice.random() < 0.5
        if isinstance(worst, float) and worst > 0 and is_on:
            drawn[kind.name] = round(worst * share, 4)
    outages = tuple(
        (target, start, min(quiet_at, start + dice.uniform(20, 240)))
        for target in targets
        if dice.random() < 0.2
        for start in [dice.uniform(0, quiet_at * 0.8)]
    )
    stores = tuple((at, min(quiet_at, at + dice.uniform(2, 30))) for at in [dice.uniform(0, quiet_at)])
    return replace(
        # Drawn by field name.
        FaultRates(**drawn),  # type: ignore[arg-type]
        crashes=dice.choice((0, 0, 1, 2, 4)),
        # A store slower than the forges shows whether intents are durable before they are acted upon.
        store_latency=dice.choice(((0.001, 0.01), (0.001, 0.01), (0.2, 0.6))),
        outages=outages,
        store_outages=stores if dice.random() < 0.25 else (),
    )


@dataclass(slots=True)
class Faults:
    """Strikes by the rates until `end`. One stream of chance for each use, so that uses do not shift each other."""

    rates: FaultRates
    seed: int | str
    now: Callable[[], float]
    is_over: bool = False
    log: list[str] = field(default_factory=list)
    on_step: Callable[[str], None] = lambda _: None
    """Hears of each step of the daemon towards the world: where it may be killed."""
    scripted: dict[tuple[str, str], Fate] = field(default_factory=dict)
    """The fate of the next call of (target, call), for scenarios; used once."""
    lasting: dict[tuple[str, str], Fate] = field(default_factory=dict)
    """The fate of every call of (target, call) until it is taken out again, for scenarios."""
    mail_delays: Callable[[str], list[float] | None] = lambda _: None
    """A scenario's own word on when the copies of a webhook arrive, by its label; None leaves it to chance."""
    _streams: dict[str, random.Random] = field(default_factory=dict)

    def end(self) -> None:
        self.is_over = True
        self.note("faults end")

    def note(self, text: str) -> None:
        self.log.append(f"{self.now():9.3f} {text}")

    def dice(self, use: str) -> random.Random:
        stream = self._streams.get(use)
        if stream is None:
            stream = self._streams[use] = random.Random(f"{self.seed}/{use}")  # noqa: S311 - repeatable, no secret
        return stream

    def strikes(self, use: str, share: float) -> bool:
        """Whether a fault of this share strikes now; the stream moves on either way."""
        struck = self.dice(use).random() < share
        return struck and not self.is_over

    # ------------------------------------------------------------------ roads

    async def there(self, target: str, call: str) -> Fate:
        self.on_step(f"{target}.{call}")
        await self._pass_time(target)
        fate = self._fate(target, call)
        if fate is not Fate.FINE:
            self.note(f"{target}.{call}: {fate}")
        return fate

    async def back(self, target: str, call: str) -> None:
        self.on_step(f"{target}.{call} answered")
        await self._pass_time(target)

    async def _pass_time(self, target: str) -> None:
        await asyncio.sleep(self.dice(f"latency/{target}").uniform(*self.rates.latency))

    def _fate(self, target: str, call: str) -> Fate:
        rates, roll = self.rates, self.dice(f"road/{target}").random()
        if (fate := self.scripted.pop((target, call), None)) is not None:
            return fate
        if (fate := self.lasting.get((target, call))) is not None:
            return fate
        if self.is_over:
            return Fate.FINE
        if self._is_out(target):
            return Fate.REQUEST_LOST
        listing = rates.listing_failed if call.startswith("list_") else 0.0
        for share, fate in (
            (rates.request_lost + listing, Fate.REQUEST_LOST),
            (rates.answer_lost, Fate.ANSWER_LOST),
            (rates.limited, Fate.LIMITED),
            (rates.silent / 2, Fate.SILENT_BEFORE),
            (rates.silent / 2, Fate.SILENT_AFTER),
        ):
            if roll < share:
                return fate
            roll -= share
        return Fate.FINE

    def _is_out(self, target: str) -> bool:
        now = self.now()
        return any(name == target and start <= now < end for name, start, end in self.rates.outages)

    def store_is_out(self) -> bool:
        now = self.now()
        return not self.is_over and any(start <= now < end for start, end in self.rates.store_outages)

    def message_delays(self, label: str) -> list[float]:
        """After how many seconds each copy of a cloud's message arrives; none where it is lost."""
        rates, dice = self.rates, self.dice("messages/when")
        usual, late, doubled = dice.uniform(0.1, 2), dice.uniform(2, 60), dice.uniform(0.1, 30)
        if self.strikes("messages/lost", rates.message_lost):
            self.note(f"message lost: {label}")
            return []
        delays = [late if self.strikes("messages/late", rates.message_late) else usual]
        if self.strikes("messages/doubled", rates.message_doubled):
            delays.append(delays[0] + doubled)
        self.note(f"message after {delays}: {label}")
        return delays

    # ------------------------------------------------------------------ webhooks

    def webhook_delays(self, label: str) -> list[float]:
        """After how many seconds each copy of a webhook arrives; none where it is lost."""
        if (told := self.mail_delays(label)) is not None:
            self.note(f"webhook by the script after {told}: {label}")
            return told
        rates, dice = self.rates, self.dice("webhooks/when")
        usual, late, doubled = dice.uniform(0.05, 0.5), dice.uniform(2, 90), dice.uniform(0.1, 30)
        if self.strikes("webhooks/lost", rates.webhook_lost):
            self.note(f"webhook lost: {label}")
            return []
        delays = [usual]
        if self.strikes("webhooks/late", rates.webhook_late):
            self.note(f"webhook late by {late:.1f} s: {label}")
            delays = [late]
        if self.strikes("webhooks/doubled", rates.webhook_doubled):
            self.note(f"webhook doubled: {label}")
            delays.append(delays[0] + doubled)
        return delays
