"""Child: the forges of `forges_child` with machines that can be taken, and what became of every attempt of a job."""

import asyncio
from collections.abc import Callable
from typing import Any

from autoscaler.sandbox.workload import JobSpec, RunSpec
from benchmarks.doomed import DoomedMachine, EndedRunner
from benchmarks.forges_child import ADDRESSES, Forges
from benchmarks.machines import GitHubRunner, GitLabRunner
from benchmarks.site import GITHUB_LABELS, GITHUB_REPO, GITLAB_LABELS, GITLAB_REPO

NAMES = ("hook", "submit_runs", "boot", "state", "take", "busy", "lost", "attempts")


class DoomedForges(Forges):
    """See the module docstring."""

    def __init__(self, *, webhook_secret: str, token: str, boot_s: float) -> None:
        super().__init__(webhook_secret=webhook_secret, token=token)
        self._boot_s = boot_s
        self._doomed: dict[str, tuple[DoomedMachine, asyncio.Task[None]]] = {}

    async def submit_runs(self, *, forge: str, runs: int, jobs: int) -> None:
        labels = GITHUB_LABELS if forge == "github" else GITLAB_LABELS
        for _ in range(runs):
            specs = tuple(JobSpec(key=f"job-{n}", name=f"test ({n})", labels=labels) for n in range(jobs))
            if forge == "github":
                self._github.submit(RunSpec(repo=GITHUB_REPO, workflow="ci", jobs=specs))
            else:
                self._gitlab.submit(RunSpec(repo=GITLAB_REPO, workflow="ci", jobs=specs))

    async def boot(self, *, machines: list[dict[str, Any]], daemon_url: str, job_s: float) -> None:
        for launched in machines:
            self._booted += 1
            machine = DoomedMachine(
                launched,
                session=self._sessions[self._booted % ADDRESSES],
                daemon_url=daemon_url,
                job_s=job_s,
                boot_s=self._boot_s,
                make_runner=self._make_doomed,
            )
            task = asyncio.create_task(machine.live())
            self._machines.add(task)
            task.add_done_callback(self._ended)
            self._doomed[machine.provider_id] = machine, task

    async def busy(self) -> list[tuple[str, str, str]]:
        """Machines that run a job: (provider id, forge, run)."""
        runs = {job["runner"]: job for job in await self.attempts()}
        found = []
        for id_, (machine, _) in self._doomed.items():
            job = runs.get(machine.runner_name)
            if machine.has_job and job is not None:
                found.append((id_, machine.forge, str(job["run"])))
        return found

    async def take(self, *, ids: list[str], notice_s: float) -> None:
        """The machine's own side of a reclaim."""
        for id_ in ids:
            machine, task = self._doomed[id_]
            if notice_s > 0:
                machine.warn(notice_s)
            else:
                machine.die()
                task.cancel()

    async def lost(self) -> dict[str, float]:
        """When the work of each runner was lost, in epoch seconds."""
        return {m.runner_name: m.lost_at for m, _ in self._doomed.values() if m.lost_at is not None}

    async def attempts(self) -> list[dict[str, Any]]:
        """Every attempt of every job, in order; times in epoch seconds."""
        return [*self._github_attempts(), *self._gitlab_attempts()]

    def _github_attempts(self) -> list[dict[str, Any]]:
        return [
            {
                "forge": "github",
                "run": run.id,
                "attempt": job.attempt,
                "key": job.spec.key,
                "queued_at": job.created_at,
                "started_at": job.started_at,
                "finished_at": job.completed_at,
                "runner": job.runner_name or "",
                "conclusion": job.conclusion,
            }
            for run in self._github_world.runs.values()
            for job in run.history
            if not job.is_copy
        ]

    def _gitlab_attempts(self) -> list[dict[str, Any]]:
        world = self._gitlab_world
        return [
            {
                "forge": "gitlab",
                "run": outcome.pipeline_id,
                "attempt": number,
                "key": outcome.key,
                "queued_at": job.pending_at,
                "started_at": job.started_at,
                "finished_at": job.finished_at,
                "runner": job.runner_description or "",
                "conclusion": str(job.status) if job.finished_at is not None else None,
            }
            for outcome in world.outcomes()
            for number, job in enumerate((world.job(id_) for id_ in outcome.job_ids), 1)
        ]

    def _make_doomed(self, assignment: dict[str, Any]) -> EndedRunner:
        side = self._make_runner(assignment)
        if isinstance(side, GitHubRunner):
            # What a graceful end comes to at GitHub differs by what the job was doing.
            return EndedRunner(side, lambda: side.end("failure" if self._booted % 2 else "cancelled"))
        assert isinstance(side, GitLabRunner)
        return EndedRunner(side, lambda: side.end("runner_system_failure"))


async def start(*, webhook_secret: str, token: str, boot_s: float) -> tuple[Any, dict[str, Any], Callable[[], Any]]:
    forges = DoomedForges(webhook_secret=webhook_secret, token=token, boot_s=boot_s)
    urls = await forges.open()
    return urls, {name: getattr(forges, name) for name in NAMES}, forges.aclose
