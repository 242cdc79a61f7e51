"""What the forge contract needs from the other side of a forge, and the steps its tests share.

The driver plays the people and the machines on the forge's side: it submits runs, has a registered runner take a
job, ends jobs, and breaks the forge. It never looks into the adapter.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from autoscaler.spi import Forge, ForgeJob, Labels, Registration, Scope, Telling, Webhook

LABELS: Labels = ("linux", "x64")


class ForgeDriver(Protocol):
    """The other side. `prefix` is the runner prefix that the forge was made with."""

    @property
    def forge(self) -> Forge: ...

    @property
    def scope(self) -> Scope: ...

    @property
    def repo(self) -> str: ...

    @property
    def other_repo(self) -> str:
        """A second repository of the same scope."""
        ...

    @property
    def prefix(self) -> str: ...

    @property
    def names_are_unique(self) -> bool:
        """Whether the forge refuses a second runner of a name."""
        ...

    @property
    def credential_headers(self) -> Collection[str]:
        """Lower-case names of the headers that authenticate a webhook."""
        ...

    async def submit(
        self, repo: str, *, jobs: Sequence[str] = ("build",), labels: Labels = LABELS, ref: str = "main"
    ) -> str:
        """Start a run whose jobs are all queued at once; its id."""
        ...

    async def take(self, registration: Registration) -> str:
        """The runner comes online and takes the oldest job that it may run; the job's id."""
        ...

    async def finish(self, registration: Registration, *, success: bool = True) -> None:
        """The runner's job ends; the forge forgets a single-job runner where it does so by itself."""
        ...

    async def run_again(self, job_id: str) -> None:
        """A person has the forge run one job of a finished run again."""
        ...

    async def told(self) -> Sequence[str]:
        """What stands where people look at the jobs of their runs, oldest first."""
        ...

    async def add_foreign_runner(self, name: str) -> None:
        """Somebody else registers a runner in our scope."""
        ...

    async def received(self) -> list[tuple[dict[str, str], bytes]]:
        """Every webhook sent so far, with lower-case header names; all on their way have arrived."""
        ...

    async def break_forge(self) -> None:
        """From now on every call is answered with a server error."""
        ...

    async def mend_forge(self) -> None: ...


async def register(driver: ForgeDriver, name: str = "runner") -> Registration:
    return await driver.forge.register(scope=driver.scope, group="", name=driver.prefix + name, labels=LABELS)


async def parsed(driver: ForgeDriver) -> list[Webhook]:
    """Every webhook sent so far, read by the adapter."""
    return [driver.forge.parse_webhook(headers, body) for headers, body in await driver.received()]


async def failed_run(driver: ForgeDriver, names: tuple[str, ...]) -> tuple[str, list[str]]:
    """A finished run all of whose jobs failed, and their ids."""
    run_id = await driver.submit(driver.repo, jobs=names)
    failed = []
    for name in names:
        registration = await register(driver, f"doomed-{name}")
        failed.append(await driver.take(registration))
        await driver.finish(registration, success=False)
        if not driver.forge.traits.removes_finished_runners:
            await driver.forge.deregister(registration.ref)
    return run_id, failed


async def doomed(driver: ForgeDriver) -> Telling:
    """What people are to be told about a running job whose machine is lost."""
    await driver.submit(driver.repo, ref="refs/merge-requests/7/head")
    job_id = await driver.take(await register(driver, "doomed"))
    job = await driver.forge.get_job(driver.repo, job_id)
    return Telling(
        key=f"{job.forge}:{job_id}/i-0abc",
        forge=job.forge,
        repo=job.repo,
        run_id=job.run_id,
        forge_job_id=job_id,
        job_name=job.name,
        commit=job.commit,
        url=job.url,
        title="Infrastructure, not your test",
        text="The machine that ran `build` was **taken back** by its cloud.",
    )


async def until(
    driver: ForgeDriver, is_enough: Callable[[tuple[ForgeJob, ...]], bool], *, active: Collection[str]
) -> tuple[ForgeJob, ...]:
    """The jobs of the first of a few listings that has enough of them."""
    jobs: tuple[ForgeJob, ...] = ()
    for _ in range(5):
        jobs = (await driver.forge.list_jobs(active)).jobs
        if is_enough(jobs):
            return jobs
    raise AssertionError(f"not found in five listings: {jobs}")
