"""`autoscaler demo`: forges in this process, the daemon as its child, machines as processes, jobs as shell steps.

    sandbox (this process): GitHub and GitLab over HTTP, the workload, the faults
        |  webhooks, REST                     ^ REST, runner protocols
        v                                     |
    daemon (child, revived on the same store when it dies) -> local machines -> agents -> runners -> jobs

After `duration_s` nothing new is submitted and what is queued is finished. Ctrl-C ends everything at once. Either way
no process and no folder is left behind.
"""

import argparse
import asyncio
import contextlib
import json
import random
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from autoscaler.sandbox.demo_config import STANDARD_POOLS, DemoAddresses, pools_for, write_config
from autoscaler.sandbox.demo_report import ReportInput, build_report, summary_text
from autoscaler.sandbox.demo_workload import (
    GITHUB_REPOS,
    GITLAB_REPOS,
    Submission,
    TraceError,
    generated,
    replayed,
)
from autoscaler.sandbox.faults import Faults
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.sandbox.github_face import GitHubFace
from autoscaler.sandbox.github_limits import Limits
from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.gitlab_face import GitLabFace
from autoscaler.sandbox.gitlab_world import GitLabWorld

FAULTS = ("crash", "lost_webhook", "forge_error", "slow_boot")
FINISH_S = 180.0
REVIVE_S = 0.3


class DemoError(Exception):
    """The demo cannot start as asked; the text says what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    duration_s: float
    faults: dict[str, float]
    trace: Path | None
    speed: float
    seed: int
    store: str
    keep: Path | None
    is_json: bool

    @classmethod
    def of(cls, options: argparse.Namespace) -> "DemoOptions":
        """Raises DemoError."""
        faults = {}
        for part in filter(None, options.faults.split(",")):
            name, _, value = part.partition("=")
            try:
                faults[name.strip()] = float(value)
            except ValueError:
                raise DemoError(f"--faults {part}: write NAME=VALUE with a number") from None
            share_is_wrong = name != "crash" and not 0 <= faults[name.strip()] <= 1
            if name.strip() not in FAULTS or faults[name.strip()] < 0 or share_is_wrong:
                raise DemoError(f"--faults {part}: known are {', '.join(FAULTS)}; shares from 0 to 1, crash per minute")
        if options.duration <= 0 or options.speed <= 0:
            raise DemoError("--duration and --speed must be above 0")
        return cls(
            duration_s=options.duration,
            faults=faults,
            trace=options.jobs,
            speed=options.speed,
            seed=options.seed,
            store=options.store,
            keep=options.keep,
            is_json=options.json,
        )


async def run_demo(options: DemoOptions) -> int:
    """Run the demo; returns the exit code. Raises DemoError."""
    try:
        submissions = (
            generated(options.seed, options.duration_s)
            if options.trace is None
            else [one for one in replayed(options.trace, options.speed) if one.at_s < options.duration_s]
        )
    except TraceError as error:
        raise DemoError(str(error)) from error
    folder = Path(tempfile.mkdtemp(prefix="autoscaler-demo-"))
    folder.chmod(0o755)  # machines may run as another user
    demo = Demo(options, submissions, folder)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, demo.interrupt)
    try:
        report = await demo.run()
    finally:
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            for kept in ("daemon.log", "autoscaler.db", "config.toml"):
                if (folder / kept).exists():
                    shutil.copyfile(folder / kept, options.keep / kept)
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(report, indent=2) if options.is_json else summary_text(report))
    jobs = report["jobs"]
    return 0 if jobs["lost_forever"] == 0 and report["instances_left"] == 0 else 1


class Demo:
    def __init__(self, options: DemoOptions, submissions: list[Submission], folder: Path) -> None:
        self._options = options
        self._submissions = submissions
        self._folder = folder
        self._stop = asyncio.Event()
        self._stopping_daemon = False
        self._daemon: asyncio.subprocess.Process | None = None
        self._crashes = 0
        self._revivals = 0
        self._peak = 0

    def interrupt(self) -> None:
        self._stop.set()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    async def run(self) -> dict[str, object]:
        await self._build_world()
        started = time.time()
        reviver = asyncio.create_task(self._keep_daemon_alive())
        try:
            await self._wait_ready()
            tasks = [asyncio.create_task(work) for work in (self._submit(), self._crash(), self._progress())]
            await self._until_finished(tasks[0])
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            left = await self._wind_down()
        finally:
            self._stopping_daemon = True
            reviver.cancel()
            await asyncio.gather(reviver, return_exceptions=True)
            await self._end_daemon()
            await self._end_machines()
            await self._github.aclose()
            await self._gitlab.aclose()
        return await build_report(
            ReportInput(
                github=self._github.world.job_records(),
                gitlab=self._gitlab.world.outcomes(),
                submissions=self._submissions,
                config=self._config,
                store=self._store,
                started=started,
                ended=time.time(),
                instances_left=left,
                instances_peak=self._peak,
                faults=self._options.faults,
                seed=self._options.seed,
                crashes=self._crashes,
            )
        )

    async def _build_world(self) -> None:
        options = self._options
        faults = Faults(
            lost_webhook=options.faults.get("lost_webhook", 0.0),
            forge_error=options.faults.get("forge_error", 0.0),
            seed=options.seed,
        )
        repos = {"github": set(GITHUB_REPOS), "gitlab": set(GITLAB_REPOS)}
        for one in self._submissions:
            repos[one.forge].add(one.run.repo)
        public_port, admin_port = _free_port(), _free_port()
        hook = f"http://127.0.0.1:{public_port}/webhooks/"
        secret, token = secrets.token_urlsafe(24), "glpat-" + secrets.token_urlsafe(16)
        app, private_key = AppIdentity.generate()
        self._github = GitHubFace(
            GitHubWorld(sorted(repos["github"])),
            webhook_url=hook + "github",
            webhook_secret=secret,
            app=app,
            faults=faults,
            limits=Limits(primary_per_hour=15000),
        )
        world = GitLabWorld(seed=options.seed)
        for repo in sorted(repos["gitlab"]):
            group = repo.rpartition("/")[0]
            if group not in {existing.full_path for existing in world.groups.values()}:
                world.add_group(group)
            world.add_project(repo, time.time())
        self._gitlab = GitLabFace(
            world, tokens={token: ["api"]}, webhook_url=hook + "gitlab", webhook_token=secret, faults=faults
        )
        addresses = DemoAddresses(
            github=await self._github.start(),
            gitlab=await self._gitlab.start(),
            public_port=public_port,
            admin_port=admin_port,
        )
        self._admin = f"http://127.0.0.1:{admin_port}"
        self._config = write_config(
            self._folder,
            addresses=addresses,
            pools=STANDARD_POOLS if options.trace is None else pools_for(self._submissions),
            scopes={
                forge: tuple(sorted({repo.rpartition("/")[0] for repo in names})) for forge, names in repos.items()
            },
            app_id=app.app_id,
            private_key=private_key,
            webhook_secret=secret,
            gitlab_token=token,
            slow_share=options.faults.get("slow_boot", 0.0),
            store=options.store,
            seed=options.seed,
        )
        self._store = options.store or f"sqlite:///{self._folder / 'autoscaler.db'}"

    # ------------------------------------------------------------------ the daemon

    async def _keep_daemon_alive(self) -> None:
        log = (self._folder / "daemon.log").open("ab")
        with log:
            while not self._stopping_daemon:
                self._daemon = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "autoscaler",
                    "run",
                    "--config",
                    str(self._config),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self._say(f"daemon pid {self._daemon.pid}, status page {self._admin}/")
                code = await self._daemon.wait()
                if not self._stopping_daemon:
                    self._revivals += 1
                    self._say(f"daemon ended ({code}): started again on the same store")
                    await asyncio.sleep(REVIVE_S)

    async def _wait_ready(self) -> None:
        import aiohttp

        deadline = time.monotonic() + 30
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline and not self._stop.is_set():
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"{self._admin}/healthz") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)
        if not self._stop.is_set():
            tail = (self._folder / "daemon.log").read_text()[-2000:]
            raise DemoError(f"the daemon did not start within 30 s; its log ends with:\n{tail}")

    async def _crash(self) -> None:
        per_minute = self._options.faults.get("crash", 0.0)
        if not per_minute:
            return
        dice = random.Random(f"{self._options.seed}/crash")  # noqa: S311 - repeatable faults, not secrets
        while True:
            await asyncio.sleep(dice.expovariate(per_minute / 60.0))
            if self._daemon is not None and self._daemon.returncode is None:
                self._crashes += 1
                with contextlib.suppress(ProcessLookupError):
                    self._daemon.kill()

    async def _end_daemon(self) -> None:
        daemon = self._daemon
        if daemon is None or daemon.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            daemon.terminate()
        try:
            async with asyncio.timeout(25):
                await daemon.wait()
        except TimeoutError:
            daemon.kill()
            await daemon.wait()

    # ------------------------------------------------------------------ work

    async def _submit(self) -> None:
        started = time.monotonic()
        for one in self._submissions:
            await asyncio.sleep(max(0.0, one.at_s - (time.monotonic() - started)))
            (self._github if one.forge == "github" else self._gitlab).submit(one.run)

    async def _until_finished(self, submitting: asyncio.Task[None]) -> None:
        """Until everything submitted has ended, or FINISH_S after the last submission."""
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({submitting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        deadline = time.monotonic() + FINISH_S
        while time.monotonic() < deadline and not self._stop.is_set():
            waiting, running, _ = self._counts()
            if waiting + running == 0:
                break
            await asyncio.sleep(0.25)
        stopping.cancel()

    def _counts(self) -> tuple[int, int, int]:
        """Jobs waiting, running and ended at both forges; jobs held back by their needs count as waiting."""
        waiting = running = ended = 0
        for record in self._github.world.job_records():
            if record.conclusion is not None:
                ended += 1
            elif record.first_started_at is not None:
                running += 1
            else:
                waiting += 1
        for outcome in self._gitlab.world.outcomes():
            if outcome.status in ("success", "failed", "canceled", "skipped"):
                ended += 1
            elif outcome.status in ("running", "canceling"):
                running += 1
            else:
                waiting += 1
        return waiting, running, ended

    async def _progress(self) -> None:
        started = time.monotonic()
        is_terminal = sys.stderr.isatty()
        while True:
            waiting, running, ended = self._counts()
            machines = len(self._machine_folders())
            self._peak = max(self._peak, machines)
            line = (
                f"{time.monotonic() - started:5.0f} s  jobs: {waiting:3} waiting {running:3} running {ended:4} done"
                f"   machines: {machines:3}   crashes: {self._crashes}"
            )
            print(f"\r{line}" if is_terminal else line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)
            await asyncio.sleep(0.5 if is_terminal else 5.0)

    # ------------------------------------------------------------------ the end

    def _machine_folders(self) -> list[Path]:
        folder = self._folder / "machines" / "demo"
        return [path for path in folder.glob("*/pid")] if folder.exists() else []

    async def _wind_down(self) -> int:
        """Wait until every machine went away by itself; returns how many did not."""
        import aiohttp

        deadline = time.monotonic() + 45
        left = -1
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline and not self._stop.is_set():
                with contextlib.suppress(aiohttp.ClientError, KeyError, TimeoutError):
                    async with session.get(f"{self._admin}/api/v1/status") as answer:
                        left = int((await answer.json())["instances"])
                        if left == 0:
                            return 0
                await asyncio.sleep(0.5)
        return left

    async def _end_machines(self) -> None:
        """After an interrupt: nothing that the demo started may be left running."""
        from autoscaler.calls import Calls
        from autoscaler.clock import SystemClock
        from autoscaler.config import load
        from autoscaler.core import runner_prefix
        from autoscaler.plugins import make_providers
        from autoscaler.spi import Surroundings

        calls = Calls()
        surroundings = Surroundings(
            deployment="demo", runner_prefix=runner_prefix("demo"), clock=SystemClock(), gates=calls
        )
        for provider in make_providers(load(self._config), surroundings).values():
            machines = await provider.list_instances()
            await provider.terminate([machine.provider_id for machine in machines if machine.state != "terminated"])
            await provider.aclose()
        await calls.aclose()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
