"""The daemon's life as a process: start, stop, kill, stand by, take over, reload; and what its machines make of it."""

import signal
from typing import Any

from tests.integration.daemon_kit import POOLS, Daemon, Site, pool_text, site
from tests.polling import until


async def running(here: Site, count: int = 1) -> None:
    """Until so many GitHub jobs run."""

    def at_work() -> bool:
        return count <= sum(1 for one in here.github_records() if one.first_started_at and not one.conclusion)

    await until(at_work, timeout_s=20)


async def instances(daemon: Daemon) -> list[Any]:
    return list((await daemon.api("instances"))["instances"])


def held_by(here: Site, name: str = "gate") -> str:
    """A script that runs until the gate is opened with `touch`."""
    return f"while [ ! -e {here.folder / name} ]; do sleep 0.05; done"


async def test_a_job_of_each_forge_runs_on_a_fresh_machine_and_nothing_is_left() -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        names = here.submit_github("true", "true") + here.submit_gitlab("true")
        await here.succeed(names)
        await here.nothing_left()
        await daemon.ready()
        assert await daemon.stop() == 0


async def test_stopping_leaves_machines_running_and_the_next_daemon_finds_them() -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        names = here.submit_github(held_by(here))
        await running(here)
        assert await daemon.stop() == 0
        assert len(here.supervisors()) == 1, "stopping the daemon must not end a machine"
        (here.folder / "gate").touch()
        await here.succeed(names)
        await daemon.start()
        await here.nothing_left()

        async def one_ended() -> bool:
            return [row["state"] for row in await instances(daemon)] == ["terminated"]

        await until(one_ended)


async def test_kill_9_at_any_moment_of_a_launch_loses_no_job_and_doubles_no_machine() -> None:
    async with site() as here:
        daemon = here.daemon(boot_s=0.3)
        await daemon.start()
        names = here.submit_github("true", "true", "true")
        for _ in range(3):
            await until(lambda: list(here.machines.glob("ours/local-*")) or here.github.world.runners)
            await daemon.kill()
            await daemon.start()
        await here.succeed(names)
        await here.nothing_left()
        for record in here.github_records():
            assert len(record.runner_names) == 1, "a job was served twice"


async def test_a_second_daemon_stands_by_and_takes_over_when_the_first_is_killed() -> None:
    async with site() as here:
        first = here.daemon()
        store = f"sqlite:///{first.config.parent}/autoscaler.db"
        second = here.daemon(store=store)
        await first.start()
        await second.start(wait=False)
        reason = await second.unwell("leader")
        assert "another daemon works on this store" in reason["detail"]
        assert (await second.get(f"{second.public}/healthz"))[0] == 200, "standing by is alive"
        assert (await second.post("/webhooks/github", {}))[0] == 503
        second.signal(signal.SIGHUP)
        names = here.submit_github("true")
        await here.succeed(names)
        await first.kill()
        await second.serving()
        names = here.submit_github("true")
        await here.succeed(names)
        await here.nothing_left()


async def test_a_reload_changes_pools_and_a_bad_file_keeps_the_old_ones() -> None:
    async with site() as here:
        daemon = here.daemon()
        await daemon.start()
        names = here.submit_github("true", labels=["linux", "gpu"])

        async def waiting() -> Any:
            jobs = (await daemon.api("jobs"))["jobs"]
            return [job for job in jobs if job["state"] == "queued" and not job["pool"]]

        (job,) = await until(waiting)
        assert job["name"] == names[0]
        good = daemon.config.read_text()
        daemon.config.write_text(good + pool_text("gpu", "github", "linux", "gpu") + "max = 'many'\n")
        daemon.signal(signal.SIGHUP)
        await until(lambda: "config_reload_refused" in daemon.log)
        assert {pool["name"] for pool in (await daemon.api("pools"))["pools"]} == {"linux", "data"}
        daemon.config.write_text(good.replace(POOLS, POOLS + pool_text("gpu", "github", "linux", "gpu")))
        daemon.signal(signal.SIGHUP)
        await here.succeed(names)


async def test_two_deployments_on_the_same_forges_and_host_never_touch_each_other() -> None:
    async with site() as here:
        ours = here.daemon("ours")
        theirs = here.daemon("ours-too", pools=pool_text("arm", "github", "arm"))
        await ours.start()
        await theirs.start()
        names = here.submit_github(held_by(here)) + here.submit_github(held_by(here), labels=["arm"])
        await running(here, 2)
        ticks = [(await ours.api("status"))["tick"]["number"], (await theirs.api("status"))["tick"]["number"]]

        async def looked_often() -> bool:
            now = [(await ours.api("status"))["tick"]["number"], (await theirs.api("status"))["tick"]["number"]]
            return all(after > before + 8 for before, after in zip(ticks, now, strict=True))

        await until(looked_often)
        assert [len(await instances(daemon)) for daemon in (ours, theirs)] == [1, 1]
        assert len(here.supervisors("ours/")) == len(here.supervisors("ours-too/")) == 1
        (here.folder / "gate").touch()
        await here.succeed(names)
        await here.nothing_left()
        served = {record.name: record.runner_names[0] for record in here.github_records()}
        assert served[names[0]].startswith("ours--")
        assert served[names[1]].startswith("ours-too--")
        for daemon in (ours, theirs):
            assert not [row for row in (await daemon.api("ledger"))["ledger"] if row["action"] == "sweep"]
