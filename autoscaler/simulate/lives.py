"""The daemon's lives: one store disk, and a `Core` on it that can be killed at any await and started again.

Every task of a life carries it in its context, so that a kill ends all of them at once, as kill -9 does: nothing of
the process goes on, the disk and the worlds stay. Agents and webhooks reach the handlers as plain functions, each
call in a task of the life that serves it.
"""

import asyncio
import contextvars
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from autoscaler.apply_launch import Launcher
from autoscaler.config import Config
from autoscaler.core import Core
from autoscaler.health import Health
from autoscaler.metrics import Metrics
from autoscaler.model import Rules
from autoscaler.rules import rules_of
from autoscaler.sandbox.inprocess import OutboundWebhook
from autoscaler.sandbox.inprocess_agent import Answer, Unreachable
from autoscaler.simulate.faults import Faults
from autoscaler.simulate.invariants import Watch
from autoscaler.simulate.virtual_loop import VirtualTimeLoop
from autoscaler.spi import Clock, Forge, ForgeName, Provider, ProviderName
from autoscaler.store import Changes, LeaseLost, StoreError
from autoscaler.store.memory import MemoryDisk, MemoryStore

_R = TypeVar("_R")
_LIFE: contextvars.ContextVar["_Life | None"] = contextvars.ContextVar("life", default=None)
Adapters = Callable[[], tuple[Mapping[ForgeName, Forge], Mapping[ProviderName, Provider]]]


def track_lives(loop: asyncio.AbstractEventLoop) -> None:
    """Let every task know whose it is. Call once per loop."""

    def make(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> "asyncio.Task[Any]":
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        context = options.get("context")
        life = context.get(_LIFE) if context is not None else _LIFE.get()
        if life is not None:
            life.tasks[task] = None
            task.add_done_callback(life.forget)
            if life.is_over:
                task.cancel()
        return task

    loop.set_task_factory(make)


class WatchedStore(MemoryStore):
    """The memory store with time, outages and a witness of every commit."""

    def __init__(self, disk: MemoryDisk, *, faults: Faults, watch: Watch) -> None:
        super().__init__(disk)
        self._faults = faults
        self._watch = watch

    async def commit(self, changes: Changes) -> None:
        self._faults.on_step("store.commit")
        await asyncio.sleep(self._faults.dice("latency/store").uniform(*self._faults.rates.store_latency))
        if self._faults.store_is_out():
            raise StoreError("the disk is full")
        try:
            await super().commit(changes)
        finally:
            self._watch.committed([job.id for job in changes.jobs], [row.id for row in changes.instances])
        self._faults.on_step("store.committed")

    async def accept(self, forge: ForgeName, webhook: Any, received_at: Any) -> int | None:
        if self._faults.store_is_out():
            raise StoreError("the disk is full")
        return await super().accept(forge, webhook, received_at)


class _Life:
    """One process of the daemon."""

    def __init__(self, store: WatchedStore, core: Core, forges: Mapping[ForgeName, Forge]) -> None:
        self.store = store
        self.core = core
        self.forges = forges
        self.is_over = False
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.is_serving = False
        self.context = contextvars.copy_context()
        self.context.run(_LIFE.set, self)

    def spawn(self, work: Coroutine[Any, Any, _R]) -> "asyncio.Task[_R]":
        return asyncio.get_running_loop().create_task(work, context=self.context)

    def forget(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.pop(task, None)


class Daemon:
    """One deployment's daemon over its lives. `adapters` makes fresh forges and providers, as a new process does."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        adapters: Adapters,
        launcher: Callable[[Callable[[], Config]], Launcher],
        faults: Faults,
        watch: Watch,
        report: Callable[[str], None],
    ) -> None:
        self.config = config
        self.rules: Rules = rules_of(config)
        self.watch = watch
        self.lives = 0
        self.began: list[datetime] = []
        """When each life began."""
        self._clock = clock
        self._adapters = adapters
        self._launcher = launcher
        self._faults = faults
        self._report = report
        self._life: _Life | None = None

    @property
    def core(self) -> Core | None:
        """The core that runs now, once it is prepared."""
        return self._life.core if self._life is not None and self._life.is_serving else None

    def start(self) -> None:
        """Begin a life. Returns at once."""
        self.lives += 1
        self.began.append(self._clock.now())
        self._faults.note(f"{self.config.autoscaler.name}: life {self.lives} begins")
        store = WatchedStore(self.watch.disk, faults=self._faults, watch=self.watch)
        forges, providers = self._adapters()
        core = Core(
            config=self.config,
            store=store,
            forges=forges,
            providers=providers,
            launcher=self._launcher(lambda: self.config),
            clock=self._clock,
            metrics=Metrics(),
            health=Health(self._clock),
        )
        life = self._life = _Life(store, core, forges)
        life.spawn(self._live(life))

    async def _live(self, life: _Life) -> None:
        try:
            await life.store.open()
            while not await life.store.acquire_lease(f"life {self.lives}"):
                await self._clock.sleep(1.0)
            await life.core.prepare()
            life.is_serving = True
            await life.core.run()
        except (LeaseLost, StoreError) as error:
            self._faults.note(f"{self.config.autoscaler.name}: stopped by its store: {error}")
            asyncio.get_running_loop().call_later(1.0, self._begin_again, life)
        except Exception as error:
            self._report(f"{self.config.autoscaler.name}: the daemon broke: {error!r}")

    def _begin_again(self, life: _Life) -> None:
        if self._life is life:
            self.kill()
            self.start()

    def kill(self) -> None:
        """End the process now. What was on its way to it or from it is lost."""
        life, self._life = self._life, None
        if life is None:
            return
        life.is_serving, life.is_over = False, True
        life.store.break_lease()
        for task in list(life.tasks):
            task.cancel()

    # ------------------------------------------------------------------ what reaches it

    async def post(self, path: str, body: Mapping[str, Any], *, key: str, timeout_s: float) -> Answer:
        """An agent's call. Raises Unreachable."""
        dice = self._faults.dice("agent/latency")
        await self._clock.sleep(dice.uniform(0.005, 0.05))
        if self._faults.strikes("agent/request", self._faults.rates.agent_lost):
            raise Unreachable("the request was lost")
        status, answer = await self._serve(self._handle(path, json.dumps(body).encode(), key), timeout_s)
        if self._faults.strikes("agent/answer", self._faults.rates.agent_lost):
            raise Unreachable("the answer was lost")
        await self._clock.sleep(dice.uniform(0.005, 0.05))
        return status, answer

    async def _handle(self, path: str, body: bytes, key: str) -> Answer:
        assert self._life is not None
        desk = self._life.core.desk
        match path:
            case "/agent/v1/hello":
                return await desk.hello(body, "127.0.0.1")
            case "/agent/v1/assignment":
                return await desk.assignment(body, key)
            case "/agent/v1/events":
                return await desk.events(body, key)
            case _:
                raise ValueError(f"agents have no call {path}")

    async def receive(self, forge: ForgeName, webhook: OutboundWebhook) -> bool:
        """A webhook: whether it was acknowledged."""
        try:
            return await self._serve(self._take(forge, webhook), 10.0)
        except Unreachable:
            return False

    async def _take(self, forge: ForgeName, webhook: OutboundWebhook) -> bool:
        assert self._life is not None
        core = self._life.core
        parsed = self._life.forges[forge].parse_webhook(webhook.headers, webhook.body)
        if parsed.outcome != "accepted":
            return True
        try:
            seq = await core.store.accept(forge, parsed, self._clock.now())
        except StoreError:
            return False
        if seq is not None:
            core.accepted(seq, forge, parsed)
        return True

    async def _serve(self, work: Coroutine[Any, Any, _R], timeout_s: float) -> _R:
        """Run a handler in the life that serves now. Raises Unreachable."""
        life = self._life
        if life is None or not life.is_serving:
            work.close()
            raise Unreachable("nobody listens")
        task = life.spawn(work)
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            task.cancel()
            raise Unreachable("no answer in time")
        if task.cancelled():
            raise Unreachable("the connection broke")
        if (error := task.exception()) is not None:
            self._report(f"{self.config.autoscaler.name}: a handler failed: {error!r}")
            raise Unreachable("500")
        return task.result()


class Reaper:
    """Kills a daemon some steps after it was told to, in the middle of whatever it does then."""

    def __init__(self, daemons: Sequence[Daemon], faults: Faults, loop: VirtualTimeLoop) -> None:
        self._daemons = daemons
        self._faults = faults
        self._loop = loop
        self._steps_left: int | None = None
        self._hops = 0
        self._is_it: Callable[[str], bool] | None = None
        faults.on_step = self._step

    def arm(self) -> None:
        """From now on, count the daemon's steps; kill it at one of the next ones, a few callbacks later."""
        dice = self._faults.dice("crash")
        self._steps_left, self._hops = dice.randint(1, 30), dice.randint(0, 6)

    def kill_when(self, is_it: Callable[[str], bool]) -> None:
        """Kill once at the first step that is the one, for scenarios."""
        self._is_it = is_it

    def _step(self, step: str) -> None:
        if self._is_it is not None and self._is_it(step):
            self._is_it = None
            self._hop(step, 0)
        if self._steps_left is None:
            return
        self._steps_left -= 1
        if self._steps_left <= 0:
            self._steps_left = None
            self._hop(step, self._hops)

    def _hop(self, step: str, hops: int) -> None:
        if hops > 0:
            self._loop.call_soon(self._hop, step, hops - 1)
        else:
            # Never from inside one of its own tasks, which would go on until its next await.
            self._loop.call_soon(self.kill_all, f"at {step}")

    def kill_all(self, where: str) -> None:
        """Kill and start again after a while."""
        for daemon in self._daemons:
            self._faults.note(f"{daemon.config.autoscaler.name}: killed {where}")
            daemon.kill()
            self._loop.call_later(self._faults.dice("crash").uniform(0.5, 30.0), self._revive, daemon)

    @staticmethod
    def _revive(daemon: Daemon) -> None:
        if daemon.core is None:
            daemon.kill()
            daemon.start()
