"""`autoscaler demo`: forges in this process, the daemon as its child, machines as processes, jobs as shell steps.

    sandbox (this process): GitHub and GitLab over HTTP, the workload, the faults
        |  webhooks, REST                     ^ REST, runner protocols
        v                                     |
    daemon (child, revived on the same store when it dies) -> local machines -> agents -> runners -> jobs

After `duration_s` nothing new is submitted, what nobody serves is cancelled as a person would, what is queued is
finished, and the machines go by themselves. Ctrl-C ends everything at once, a second one without asking anybody.
Either way no process and no folder is left behind.
"""

import asyncio
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from autoscaler import logs
from autoscaler.config import Config, ConfigError, load
from autoscaler.demand import match_pool
from autoscaler.rules import rules_of
from autoscaler.sandbox.demo_cloud import CloudFaultShares, DemoCloud, cloud_of
from autoscaler.sandbox.demo_config import DEPLOYMENT, DemoAddresses, boot_timeout_s, world_document, write_config
from autoscaler.sandbox.demo_daemon import DaemonChild, decisions_of
from autoscaler.sandbox.demo_forges import DemoForges
from autoscaler.sandbox.demo_machines import DemoMachines, end_processes, processes_of
from autoscaler.sandbox.demo_options import DemoError, DemoOptions
from autoscaler.sandbox.demo_pools import STANDARD_POOLS, DemoPool, pools_of_trace
from autoscaler.sandbox.demo_progress import Progress, Screen, summary_text
from autoscaler.sandbox.demo_reclaims import DemoReclaims
from autoscaler.sandbox.demo_records import DemoRecords, JobRecord, PoolFacts
from autoscaler.sandbox.demo_report import build_report
from autoscaler.sandbox.demo_store import check_store_is_new, stored
from autoscaler.sandbox.demo_trace import TraceError, replayed
from autoscaler.sandbox.demo_workload import Submission, generated
from autoscaler.sandbox.demo_world_file import CloudWorld, expectations, recorded_world
from autoscaler.sandbox.faults import Faults
from autoscaler.spi import ForgeName, PoolName, Secret

STALLED_S = 180.0
"""Without a job that starts or ends for so long, the demo gives up on what is left."""
WIND_DOWN_S = 45.0
END_MACHINES_S = 5.0
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
KEPT = ("daemon.log", "autoscaler.db", "config.toml")


async def run_demo(options: DemoOptions) -> int:
    """Run the demo; returns the exit code. Raises DemoError."""
    try:
        submissions, trace = _workload(options)
    except TraceError as error:
        raise DemoError(str(error)) from error
    world = _recorded_world(options)
    logs.configure(level="warning")
    screen = Screen(sys.stderr)
    demo = Demo(options, submissions, trace, world, screen)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, demo.interrupt)
    report = await demo.run()
    print(json.dumps(report, indent=2) if options.is_json else summary_text(report), flush=True)
    if report["was_stopped"]:
        left = report["processes_left"]
        screen.say("stopped: " + (f"{left} processes could not be ended" if left else "nothing is left running"))
    failures = (
        "unfinished",
        "instances_left",
        "registrations_left",
        "processes_left",
        "served_twice",
        "losses_missed",
        "losses_open",
        "spills_unnamed",
    )
    is_well = not report["was_stopped"] and not any(report[key] for key in failures)
    return 0 if is_well and report["jobs"]["lost_forever"] == 0 else 1


def _workload(options: DemoOptions) -> tuple[Sequence[Submission], dict[str, Any] | None]:
    """What to submit, and what the report says of the trace. Raises TraceError."""
    if options.trace is None:
        return generated(options.seed, options.duration_s), None
    replay = replayed(options.trace, speed=options.speed, duration_s=options.duration_s)
    if not replay.submissions:
        raise TraceError(f"{options.trace}: its first job comes after {options.duration_s:g} s at this --speed")
    trace = {
        "file": options.trace.name,
        "jobs": replay.trace_jobs,
        "replayed": replay.jobs,
        "speed": options.speed,
    }
    return replay.submissions, trace


def _recorded_world(options: DemoOptions) -> CloudWorld | None:
    """What `--world` says. Raises DemoError."""
    if options.world is None:
        return None
    return recorded_world(options.world, kind=options.provider, speed=options.speed)


@dataclass(slots=True, kw_only=True)
class _Site:
    """What one run is made of, once it is built."""

    folder: Path
    store: str
    config: Config
    pools: Sequence[DemoPool]
    forges: DemoForges
    cloud: DemoCloud
    daemon: DaemonChild
    reclaims: DemoReclaims
    machines: DemoMachines
    on_demand_prices: Mapping[PoolName, float | None]


class Demo:
    """One run. `interrupt` may be called at any time, twice for no patience at all."""

    def __init__(
        self,
        options: DemoOptions,
        submissions: Sequence[Submission],
        trace: dict[str, Any] | None,
        recorded: CloudWorld | None,
        screen: Screen,
    ) -> None:
        self._options = options
        self._recorded = recorded
        self._submissions = submissions
        self._trace = trace
        self._screen = screen
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    def interrupt(self) -> None:
        if self._stop.is_set():
            self._now.set()
            return
        self._stop.set()
        self._screen.say("stopping: the daemon and its machines are ended (once more: without asking them)")

    async def run(self) -> dict[str, Any]:
        """The report. Raises DemoError."""
        folder = _make_folder()
        try:
            return await self._run_in(folder)
        finally:
            await end_processes(folder)
            self._keep(folder)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _run_in(self, folder: Path) -> dict[str, Any]:
        site = await self._build(folder)
        started_at, left = time.time(), 0
        try:
            await site.daemon.start(self._stop)
            await self._work(site)
            left = await self._wind_down(site)
        finally:
            await site.daemon.end(now=self._stop)
            left = await self._end_machines(site, left)
            ended_at, jobs = time.time(), site.forges.jobs()
            await site.cloud.aclose()
            await site.forges.aclose()
        return build_report(
            await self._records(site, jobs, started_at=started_at, ended_at=ended_at, instances_left=left),
            was_stopped=self._stop.is_set(),
        )

    # ------------------------------------------------------------------ building

    async def _build(self, folder: Path) -> _Site:
        options = self._options
        store = options.store or f"sqlite:///{folder / 'autoscaler.db'}"
        await check_store_is_new(store)
        public_port, admin_port = _free_port(), _free_port()
        admin_token = Secret(secrets.token_urlsafe(24))
        faults = Faults(
            lost_webhook=options.faults.get("lost_webhook", 0.0),
            forge_error=options.faults.get("forge_error", 0.0),
            seed=options.seed,
        )
        forges = DemoForges(
            self._submissions, hooks=f"http://127.0.0.1:{public_port}/webhooks/", faults=faults, seed=options.seed
        )
        pools = STANDARD_POOLS if options.trace is None else pools_of_trace(self._submissions)
        github, gitlab = await forges.start()
        cloud = cloud_of(options.provider, DEPLOYMENT, self._screen.say, world=self._recorded)
        for line in expectations(self._recorded) if self._recorded is not None else ():
            self._screen.say(line)
        try:
            made = await cloud.start(folder, pools, faults=self._cloud_faults(), seed=options.seed)
            os.environ.update(made.environ)  # for the daemon, and for this process's own look at the machines
            path = write_config(
                folder,
                addresses=DemoAddresses(github=github, gitlab=gitlab, public_port=public_port, admin_port=admin_port),
                pools=pools,
                shapes={pool.name: cloud.shape_of(pool) for pool in pools},
                cloud=made,
                scopes={forge: forges.scopes(forge) for forge in forges.repos},
                secrets=forges.secrets,
                admin_token=admin_token,
                store=store,
                boot_timeout_s=boot_timeout_s(cloud.pace, slow_share=options.faults.get("slow_boot", 0.0)),
            )
            config = load(path)
            machines = DemoMachines(config)
            prices = await machines.on_demand_prices()
        except BaseException as error:
            await cloud.aclose()
            await forges.aclose()
            if isinstance(error, ConfigError):
                raise DemoError(f"the configuration made for this workload is refused:\n{error}") from error
            raise
        daemon = DaemonChild(
            path, folder / "daemon.log", f"http://127.0.0.1:{admin_port}", admin_token, say=self._screen.say
        )
        reclaims = DemoReclaims(
            forges,
            daemon,
            lambda machine, notice_s: cloud.reclaim(machine, notice_s=notice_s),
            share=options.faults.get("reclaim", 0.0),
            no_notice=options.faults.get("no_notice", 0.0),
            notice_s=cloud.pace.notice_s,
            seed=options.seed,
        )
        return _Site(
            folder=folder,
            store=store,
            config=config,
            pools=pools,
            forges=forges,
            cloud=cloud,
            daemon=daemon,
            reclaims=reclaims,
            machines=machines,
            on_demand_prices=prices,
        )

    def _cloud_faults(self) -> CloudFaultShares:
        shares = self._options.faults
        return CloudFaultShares(**{item.name: shares.get(item.name, 0.0) for item in fields(CloudFaultShares)})

    def _world(self, cloud: DemoCloud, pools: Sequence[DemoPool]) -> dict[str, object]:
        world = world_document(cloud, pools, slow_share=self._options.faults.get("slow_boot", 0.0))
        if self._trace is not None:
            world |= {"trace": self._trace}
            del world["job_s"]
        if (recorded := self._recorded) is not None:
            world |= {"file": recorded.file, "speed": recorded.speed, "unannounced": recorded.unannounced}
        return {**world, "seed": self._options.seed, "duration_s": self._options.duration_s}

    # ------------------------------------------------------------------ the work

    async def _work(self, site: _Site) -> None:
        """Submit for the duration, have a person cancel what nobody serves, finish the rest."""
        progress = Progress(self._screen, site.daemon, duration_s=self._options.duration_s, tally=site.forges.tally)
        crashes = site.daemon.crash_forever(self._options.faults.get("crash", 0.0), self._options.seed)
        beside = [asyncio.create_task(one) for one in (progress.run(), crashes, site.reclaims.run())]
        try:
            if await self._unless_stopped(self._submit(site.forges)):
                await self._unless_stopped(self._finish(site))
        finally:
            for task in beside:
                task.cancel()
            for outcome in await asyncio.gather(*beside, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Whether it came to its end before a person stopped the demo. Raises what it raised."""
        working, stopping = asyncio.create_task(work), asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopping):
            task.cancel()
        outcome, _ = await asyncio.gather(working, stopping, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome is None and not self._stop.is_set()

    async def _submit(self, forges: DemoForges) -> None:
        started = time.monotonic()
        for one in self._submissions:
            await asyncio.sleep(max(0.0, one.at_s - (time.monotonic() - started)))
            forges.submit(one)
        await asyncio.sleep(max(0.0, self._options.duration_s - (time.monotonic() - started)))

    async def _finish(self, site: _Site) -> None:
        """Until every job has ended, or nothing moved for STALLED_S and two boots."""
        stalled_s = STALLED_S + 2 * site.cloud.pace.boot_s[1]
        moved_at, before = time.monotonic(), site.forges.tally()
        while before.open:
            self._cancel_unserved(site)
            await asyncio.sleep(0.25)
            if (now := site.forges.tally()) != before:
                moved_at, before = time.monotonic(), now
            elif time.monotonic() - moved_at > stalled_s:
                self._screen.say(f"nothing moved for {stalled_s:.0f} s: {before.open} jobs are left as they are")
                return

    def _cancel_unserved(self, site: _Site) -> None:
        for job in site.forges.jobs():
            if job.is_queued and _pool_of(job, site.config) is None:
                self._screen.say(f"a person cancels {job.name} of {job.repo}, which nobody serves")
                site.forges.cancel(job)

    # ------------------------------------------------------------------ the end

    async def _wind_down(self, site: _Site) -> int:
        """Without faults now: wait until every machine and registration went by itself; machines that did not."""
        site.forges.end_faults()
        site.cloud.end_faults()
        deadline = time.monotonic() + WIND_DOWN_S + site.cloud.pace.boot_s[1]  # one may have just begun to boot
        while not self._stop.is_set():
            left = await site.machines.living()
            status = await site.daemon.ask("/api/v1/status")
            is_empty = status is not None and status["instances"] == 0
            if left == 0 and is_empty and not site.forges.registrations():
                return 0
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.5)
        return 0

    async def _end_machines(self, site: _Site, left: int) -> int:
        """What did not go by itself is ended. After a person's stop it counts as left only if it resists."""
        try:
            if left or self._stop.is_set():
                await site.machines.terminate_all()
                deadline = time.monotonic() + END_MACHINES_S
                while await site.machines.living():
                    if time.monotonic() > deadline or self._now.is_set():
                        break
                    await asyncio.sleep(0.1)
        finally:
            await site.machines.aclose()
        if not self._stop.is_set():
            return left
        return await end_processes(site.folder)

    async def _records(
        self, site: _Site, jobs: Sequence[JobRecord], *, started_at: float, ended_at: float, instances_left: int
    ) -> DemoRecords:
        rules = rules_of(site.config)
        found = await stored(site.store)
        processes_left = len(await asyncio.to_thread(processes_of, site.folder))
        return DemoRecords(
            jobs=jobs,
            stored_jobs=found.jobs,
            instances=found.instances,
            moves=found.moves,
            interruptions=found.interruptions,
            ledger=found.ledger,
            pools={
                name: PoolFacts(
                    name=name,
                    target_s=pool.target.total_seconds(),
                    max=pool.max,
                    on_demand_usd_hour=site.on_demand_prices[name],
                )
                for name, pool in rules.pools.items()
            },
            pool_of={(job.forge, job.repo, job.labels): _pool_of(job, site.config) for job in jobs},
            traits=site.machines.traits,
            recorded_usd=found.recorded_usd,
            cap_instances=rules.caps.instances,
            decisions=decisions_of(site.daemon.log),
            started_at=started_at,
            ended_at=ended_at,
            instances_left=instances_left,
            registrations_left=len(site.forges.registrations()),
            processes_left=processes_left,
            crashes=site.daemon.crashes,
            world=self._world(site.cloud, site.pools),
            faults=self._options.faults,
        )

    def _keep(self, folder: Path) -> None:
        if self._options.keep is None:
            return
        try:
            self._options.keep.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                if (folder / name).exists():
                    shutil.copyfile(folder / name, self._options.keep / name)
        except OSError as error:
            self._screen.say(f"--keep: {error}")


def _make_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="autoscaler-demo-")).resolve()
    folder.chmod(0o755)  # machines may run as another user; what is secret has a file of its own
    return folder


def _pool_of(job: JobRecord, config: Config) -> PoolName | None:
    return match_pool(
        forge=ForgeName(job.forge),
        repo=job.repo,
        labels=job.labels,
        run_id="",
        pools=rules_of(config).pools.values(),
    ).pool


def _free_port() -> int:
    """A port that no outgoing connection can take while the daemon is down: one below the ephemeral range."""
    lowest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32768
    while True:
        port = random.randrange(10_000, max(10_001, min(lowest, 60_000)))  # noqa: S311 - any free one will do
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
