"""No secret's value is anywhere but where it must be: its file, the forge, and the runner that it was made for."""

from pathlib import Path
from typing import Any

from tests.integration.daemon_kit import Site, arguments_of, environment_of, pids, site
from tests.polling import until


def registrations(here: Site) -> dict[str, str]:
    """The secrets of the runners that live now: GitLab knows its own, GitHub's runner was given its configuration."""
    found = {f"runner {row.description}": row.token for row in here.gitlab.world.list_runners()}
    for pid in pids():
        for entry in environment_of(pid).decode(errors="replace").split("\0"):
            name, _, value = entry.partition("=")
            if name.endswith("JITCONFIG") and value:
                found["jit configuration"] = value
    return found


def files_of(here: Site) -> dict[str, bytes]:
    """Everything the daemon wrote: its log, its store with what lies beside it."""
    (daemon,) = here.daemons
    kept = [path for path in daemon.config.parent.iterdir() if path.name not in here.secrets]
    return {str(path): path.read_bytes() for path in kept if path.is_file()}


def user_data_of(here: Site) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in here.machines.glob("*/*/**/boot.json")} | {
        str(path): path.read_bytes() for path in here.machines.glob("*/*/meta.json")
    }


async def answers_of(here: Site) -> dict[str, bytes]:
    """What the admin listener shows to those who may look."""
    (daemon,) = here.daemons
    shown: dict[str, bytes] = {}
    for path in ("status", "pools", "jobs", "instances", "offerings", "ledger"):
        status, body = await daemon.get(f"{daemon.admin}/api/v1/{path}")
        assert status == 200, path
        shown[path] = repr(body).encode()
    for path in ("/", "/metrics", "/readyz"):
        _, page = await daemon.get(daemon.admin + path)
        shown[path] = repr(page).encode()
    return shown


async def test_no_secret_is_in_logs_store_user_data_pages_or_anybodys_command_line() -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        gate = here.folder / "gate"
        hold = f"while [ ! -e {gate} ]; do sleep 0.05; done"
        names = here.submit_github(hold) + here.submit_gitlab(hold)

        def both_run() -> Any:
            at_github = any(one.first_started_at and not one.conclusion for one in here.github_records())
            return at_github and any(one.status == "running" for one in here.gitlab.world.outcomes())

        await until(both_run, timeout_s=25)
        known = {**here.secrets, **registrations(here)}
        keys = {str(path): path.read_bytes() for path in here.machines.glob("*/master.key")}
        assert len(known) == len(here.secrets) + 2
        assert keys
        here.github_fault.kind = "revoked"  # errors are where secrets leak
        await daemon.unwell("forge/github")
        here.github_fault.kind = ""
        seen = {**files_of(here), **user_data_of(here), **(await answers_of(here))}
        seen |= {f"/proc/{pid}/cmdline": arguments_of(pid) for pid in pids()}
        seen |= {f"/proc/{pid}/environ": environment_of(pid) for pid in pids() if not is_runner(pid)}
        gate.touch()
        await here.succeed(names, timeout_s=40)
        await daemon.stop()
        seen |= {f"{path} at the end": content for path, content in files_of(here).items()}
        for what, value in known.items():
            assert [place for place, content in seen.items() if value.encode() in content] == [], what
        for what, key in keys.items():
            found = [place for place, content in seen.items() if key in content or key.hex().encode() in content]
            assert found == [], what


def is_runner(pid: int) -> bool:
    """A GitHub registration reaches its runner in the environment: of the runner, and of the job as the same user."""
    return b"JITCONFIG=" in environment_of(pid)


def test_the_kit_sees_processes() -> None:
    """A scan that sees nothing finds nothing."""
    assert any(b"pytest" in arguments_of(pid) or environment_of(pid) for pid in (*pids(), 1))
    assert Path("/proc/self/cmdline").exists()
