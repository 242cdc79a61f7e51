"""What the sandbox's forges are asked to run: runs of jobs with stages.

Plain values shared by both forge faces, the demo's workload generator, the trace
replayer and the simulation. Nothing here knows a forge's protocol.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """One job of a run.

    `key` is unique within the run and is what `needs` refers to. `script` is the shell lines that a real
    runner executes (line by line under `sh -e`); `duration_s` is how long a simulated runner takes, and
    `fails` is whether a simulated runner reports a genuine failure.
    """

    key: str
    name: str
    labels: tuple[str, ...]
    script: tuple[str, ...] = ("true",)
    needs: tuple[str, ...] = ()
    duration_s: float = 1.0
    fails: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One workflow run (GitHub) or pipeline (GitLab). `repo` is owner/name or group/project."""

    repo: str
    workflow: str
    jobs: tuple[JobSpec, ...]
    ref: str = "main"
