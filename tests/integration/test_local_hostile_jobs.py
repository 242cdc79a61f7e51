"""Jobs that are out to reach beyond their machine: what they plant, read and use up."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from autoscaler.spi import BatchToken, CapacityUnavailable, InvalidRequest, MachineState, Shape
from providers.local_isolation import SEARCH_PATH, UIDS, Isolation, candidates, make_folders
from providers.local_limits import NO_LIMITS, PROCESSES, Limits, find_limits
from providers.local_supervisor import write
from tests.agent_daemon import AgentDaemon
from tests.contract.provider_contract import find, launch
from tests.local_site import local_site, processes_with
from tests.polling import until

ENDED = {MachineState.TERMINATED}
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to drop it")
PRECIOUS = "precious"
PLANTING = """\
#!/bin/bash
for name in notice.json.new notice.json; do
    rm -f "$HOME/../$name"
    {plant} "$HOME/../$name"
    {plant} "{notices}/$name"
done 2>"$HOME/refused"
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
sleep 1000
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass through, unlike pytest's."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
async def daemon() -> AsyncIterator[AgentDaemon]:
    server = AgentDaemon()
    server.memory.assignment = {
        **{"kind": "github", "runner_name": "x-1", "secret": "s3cret", "parameters": {}, "max_job_runtime_s": 60.0}
    }
    await server.start()
    yield server
    await server.stop()
    assert server.violations == []


@pytest.mark.parametrize("plant", ["ln -s {victim}", "mkfifo", "mkdir"])
@pytest.mark.parametrize("rung", ["bwrap", pytest.param("process", marks=ROOT_ONLY)])
async def test_nothing_a_job_plants_leads_or_stops_the_supervisor(
    open_folder: Path, daemon: AgentDaemon, rung: str, plant: str
) -> None:
    victim = open_folder / "victim"
    victim.write_text(PRECIOUS)
    async with local_site(open_folder, isolation=rung, daemon_url=daemon.url, notice_s=1.5) as site:
        assert site.provider.drops_root == (os.getuid() == 0)
        notices = "/notices" if rung == "bwrap" else '"$HOME/../../notices"'
        site.write_runner(PLANTING.format(plant=plant.format(victim=victim), notices=notices))
        (machine,) = await launch(site, "b-1", count=1)
        await until(lambda: "job_started" in daemon.memory.kinds())
        await site.provider.interrupt([machine.provider_id])
        await until(lambda: "notice" in daemon.memory.kinds())
        await until(lambda: find(site.provider, machine.provider_id, ENDED))
    assert victim.read_text() == PRECIOUS
    assert victim.stat().st_uid == os.getuid()


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_is_written_replaces_what_was_planted(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text(PRECIOUS)
    if planted == "link":
        (tmp_path / "notice.json").symlink_to(victim)
    else:
        os.mkfifo(tmp_path / "notice.json")
    write(str(tmp_path), "notice.json", "{}")
    assert victim.read_text() == PRECIOUS
    assert (tmp_path / "notice.json").is_file()
    assert not (tmp_path / "notice.json").is_symlink()
    assert (tmp_path / "notice.json").read_text() == "{}"


def test_what_is_written_never_goes_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "notices").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="notices"):
        write(str(tmp_path / "notices"), "notice.json", "{}")
    assert list((tmp_path / "elsewhere").iterdir()) == []


# ---------------------------------------------------------------------- what a job of the daemon's own uid can read

LOOK = """\
import json, os, pwd, socket, ssl, sys
def tried(what):
    try:
        return what()
    except OSError as error:
        return type(error).__name__
print(json.dumps({
    "root": sorted(os.listdir("/")),
    "etc": sorted(os.listdir("/etc")),
    "var": sorted(os.listdir("/var")),
    "read": [tried(lambda: open(path, errors='replace').read()) for path in sys.argv[1:]],
    "write": [tried(lambda: open(path, "w").write("")) for path in sys.argv[1:]],
    "user": pwd.getpwuid(0).pw_name,
    "localhost": sorted({one[4][0] for one in socket.getaddrinfo("localhost", 80)}),
    "tmp": os.path.realpath("/var/tmp"),
}))
"""


def look(isolation: Isolation, *paths: Path, image: dict[str, str] | None = None) -> dict[str, object]:
    """What a program sees on a rung, with the daemon's own uid."""
    instance = isolation.state_dir / "instance"
    make_folders(instance)
    command = isolation.command(
        instance, uid=UIDS[0], image=image or {}, program=("-c", LOOK, *(str(path) for path in paths))
    )
    for argv in command.prepare:
        subprocess.run(argv, check=True)
    done = subprocess.run(
        command.argv, env={"PATH": SEARCH_PATH}, capture_output=True, check=False, timeout=30, text=True
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, object] = json.loads(done.stdout)
    return seen


def with_own_uid(state_dir: Path, *, python: str = "", binds: tuple[Path, ...] = ()) -> Isolation:
    python = python or os.path.realpath(sys.executable)
    return Isolation(rung="bwrap", drops_root=False, python=python, state_dir=state_dir, binds=binds)


@pytest.mark.parametrize("python", ["", "/usr/bin/python3"])
def test_a_job_with_the_daemons_uid_sees_nothing_that_is_not_named(tmp_path: Path, python: str) -> None:
    if not Path(python).exists():
        pytest.skip(f"{python} is not installed")
    source = Path(__file__).resolve()
    seen = look(with_own_uid(tmp_path, python=python), source, Path("/etc/shadow"), tmp_path / "master.key")
    assert seen["read"] == ["FileNotFoundError"] * 3
    home = {Path(sys.base_prefix).parts[1]}  # where the interpreter is: nothing else of it, see below
    host = {"bin", "etc", "lib", "lib32", "lib64", "libx32", "sbin", "sys", "usr", "var"}
    assert set(seen["root"]) <= host | home | {"dev", "home", "machine", "notices", "proc", "root", "run", "tmp"}  # type: ignore[call-overload]
    assert seen["var"] == ["run", "tmp"]
    assert not {"shadow", "ssh", "sudoers", "gitconfig", "autoscaler"} & set(seen["etc"])  # type: ignore[call-overload]
    assert {"passwd", "hosts", "ssl"} <= set(seen["etc"])  # type: ignore[call-overload]
    assert (seen["user"], seen["tmp"]) == ("root", "/tmp")
    assert seen["localhost"]


def test_an_interpreter_in_a_home_does_not_show_the_home(tmp_path: Path) -> None:
    prefix = Path(sys.base_prefix)
    beside = next((path for path in sorted(prefix.iterdir()) if path.name not in ("bin", "lib", "lib64")), None)
    if prefix.is_relative_to("/usr") or beside is None:
        pytest.skip("this Python is the system's")
    seen = look(with_own_uid(tmp_path), beside, prefix.parent / "other", prefix / "bin" / "python3")
    assert seen["read"][:2] == ["FileNotFoundError"] * 2  # type: ignore[index]
    assert seen["write"][2] == "OSError"  # type: ignore[index]


def test_binds_are_visible_and_read_only(tmp_path: Path) -> None:
    toolchain = tmp_path / "toolchain"
    toolchain.mkdir()
    (toolchain / "compiler").write_text("cc")
    (tmp_path / "state").mkdir()
    seen = look(with_own_uid(tmp_path / "state", binds=(toolchain,)), toolchain / "compiler")
    assert (seen["read"], seen["write"]) == (["cc"], ["OSError"])


def test_the_state_folder_is_hidden_even_below_a_bind(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "master.key").write_text("key")
    seen = look(with_own_uid(tmp_path / "state", binds=(tmp_path,)), tmp_path / "state" / "master.key")
    assert seen["read"] == ["FileNotFoundError"]


def test_a_program_brings_its_own_folder_and_no_other(tmp_path: Path) -> None:
    for folder in ("gitlab-runner", "etc"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "gitlab-runner").write_text("program")
        (tmp_path / folder / "app.pem").write_text("beside")
    (tmp_path / "state").mkdir()
    inside = Path("/machine/image/gitlab_runner")
    for folder, beside in (("gitlab-runner", "beside"), ("etc", "FileNotFoundError")):
        isolation = with_own_uid(tmp_path / "state" / folder)
        isolation.state_dir.mkdir()
        image = {"gitlab_runner": str(tmp_path / folder / "gitlab-runner")}
        seen = look(isolation, inside / "gitlab-runner", inside / "app.pem", image=image)
        assert seen["read"] == ["program", beside]


async def test_an_image_that_holds_the_state_folder_is_refused(tmp_path: Path) -> None:
    async with local_site(tmp_path) as site:
        (tmp_path / "run.sh").write_text("")
        offerings = await site.provider.offerings(Shape())
        with pytest.raises(InvalidRequest, match="state folder"):
            await site.provider.launch(
                site.batch("b-1", count=1, offerings=offerings, image={"github_runner": str(tmp_path)})
            )


# ---------------------------------------------------------------------- the ladder


@pytest.mark.parametrize(
    ("is_root", "allowed"),
    [
        (False, [("bwrap", False)]),
        (True, [("bwrap", True), ("bwrap", False), ("unshare", True), ("process", True)]),
    ],
)
def test_auto_never_ends_where_jobs_can_read_what_the_daemon_can(
    tmp_path: Path, is_root: bool, allowed: list[tuple[str, bool]]
) -> None:
    found = candidates(tmp_path, "auto", binds=(), is_root=is_root)
    assert list(dict.fromkeys((one.rung, one.drops_root) for one in found)) == allowed


PROBE = """\
import os, pathlib, sys
sys.path[:0] = sys.argv[3:]
from providers.local_isolation import probe
try:
    print("chose", probe(pathlib.Path(sys.argv[1]), sys.argv[2]).rung)
except OSError as error:
    print("refused", error)
"""


@ROOT_ONLY
@pytest.mark.parametrize("wanted", ["auto", "process"])
def test_without_bubblewrap_an_ordinary_users_daemon_says_what_to_do(open_folder: Path, wanted: str) -> None:
    """A user's daemon on a host whose bwrap does not work; a Python that such a user can run is needed."""
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("no Python that everybody can run")
    os.chown(open_folder, 65534, 65534)
    modules = [str(Path(__file__).parents[2]), str(Path(structlog.__file__).parents[1])]
    hidden = "mount --bind /bin/false /usr/bin/bwrap && exec setpriv --reuid 65534 --regid 65534 --clear-groups -- "
    enter = ["unshare", "-m", "sh", "-c", f'{hidden} "$@"', "-"]
    done = subprocess.run(
        [*enter, str(python), "-c", PROBE, str(open_folder), wanted, *modules],
        capture_output=True, text=True, timeout=60, check=False, cwd="/", env={"PATH": SEARCH_PATH},
    )  # fmt: skip
    if wanted == "auto":
        assert "refused no isolation works here" in done.stdout, done.stderr
        assert 'install bubblewrap (and allow user namespaces), or trust every job and say isolation = "process"' in (
            done.stdout
        )
    else:
        assert "chose process" in done.stdout, done.stderr
        assert "local_machines_share_the_daemons_user" in done.stdout


@ROOT_ONLY
async def test_each_machine_has_a_uid_that_nobody_else_has(open_folder: Path) -> None:
    async with local_site(open_folder, slots=8) as site:
        used_by_a_process = UIDS[7]
        bystander = subprocess.Popen(["setpriv", "--reuid", str(used_by_a_process), "--clear-groups", "sleep", "1000"])
        try:
            await until(lambda: Path(f"/proc/{bystander.pid}").stat().st_uid == used_by_a_process)
            free = {UIDS[3], UIDS[200]}
            for uid in set(UIDS) - free - {used_by_a_process}:
                other = site.state_dir / "theirs" / f"local-{uid}"
                other.mkdir(parents=True)
                (other / "meta.json").write_text(json.dumps({"provider": "else", "uid": uid}))
            offerings = await site.provider.offerings(Shape())
            result = await site.provider.launch(site.batch("b-1", count=3, offerings=offerings))
        finally:
            bystander.kill()
            bystander.wait()
        metas = [json.loads((site.folder(one.provider_id) / "meta.json").read_text()) for one in result.instances]
        assert {meta["uid"] for meta in metas} == free
        assert len(metas) == 2
        assert {type(refusal.error) for refusal in result.refusals} == {CapacityUnavailable}


@ROOT_ONLY
async def test_a_strict_umask_does_not_keep_machines_from_dropping_root(open_folder: Path) -> None:
    before = os.umask(0o077)
    try:
        async with local_site(open_folder, isolation="process") as site:
            assert site.provider.drops_root
    finally:
        os.umask(before)


async def test_the_locks_are_for_their_owner_alone(tmp_path: Path) -> None:
    async with local_site(tmp_path) as site:
        lock = site.state_dir / ".launch-lock"
        lock.touch(mode=0o644)
        (machine,) = await launch(site, BatchToken("b-1"), count=1)
        await until(lambda: find(site.provider, machine.provider_id, {MachineState.RUNNING}))
        assert [path.stat().st_mode & 0o077 for path in (lock, site.folder(machine.provider_id) / "alive")] == [0, 0]


# ---------------------------------------------------------------------- what a job can use up

GREEDY = """\
#!/bin/bash
bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
python3 -c 'held = b"x" * (600 << 20); print(len(held))'
echo $? >"$HOME/result"
sleep 1000
"""


async def test_memory_and_processes_are_bounded_and_the_bounds_leave_with_the_machine(
    tmp_path: Path, daemon: AgentDaemon
) -> None:
    found = find_limits(has_own_uid=True)
    if not found.kind.startswith("cgroup"):
        pytest.skip("no cgroup of ours to make groups in")
    pools = [{"machine_type": "small", "memory_gib": 0.25}]
    async with local_site(tmp_path, daemon_url=daemon.url, capacity_pools=pools) as site:
        site.write_runner(GREEDY)
        (machine,) = await launch(site, "b-1", count=1)
        groups = [Path(one["folder"]) for one in found.cgroups(machine.provider_id, 0.25)]
        result = site.folder(machine.provider_id) / "machine" / "home" / "result"
        await until(lambda: result.exists() and result.read_text() == "137\n", timeout_s=30)
        assert all(group.is_dir() for group in groups)
        bounds = next(group / "pids.max" for group in groups if (group / "pids.max").exists())
        assert bounds.read_text() == f"{PROCESSES}\n"
        assert await find(site.provider, machine.provider_id, {MachineState.RUNNING})
        await site.provider.terminate([machine.provider_id])
        await until(lambda: find(site.provider, machine.provider_id, ENDED))
        assert not any(group.exists() for group in groups)
        await until(lambda: not processes_with(machine.provider_id))


async def test_limits_can_be_switched_off(tmp_path: Path, daemon: AgentDaemon) -> None:
    async with local_site(tmp_path, daemon_url=daemon.url, limits=False) as site:
        (machine,) = await launch(site, "b-1", count=1)
        spec = json.loads((site.folder(machine.provider_id) / "spec.json").read_text())
        assert spec["cgroups"] == []
        assert "prlimit" not in spec["argv"]


def test_a_delegated_folder_of_cgroup_v2_is_used_and_no_other(tmp_path: Path) -> None:
    service = tmp_path / "system.slice" / "autoscaler.service"
    (service / "daemon").mkdir(parents=True)
    (service / "cgroup.controllers").write_text("cpu memory pids\n")
    where = {"membership": "0::/system.slice/autoscaler.service/daemon\n", "mount": tmp_path}
    assert find_limits(has_own_uid=False, **where) == NO_LIMITS  # type: ignore[arg-type]
    try:
        os.setxattr(service, "user.delegate", b"1")
    except OSError:
        pytest.skip("no user attributes on this file system")
    found = find_limits(has_own_uid=False, **where)  # type: ignore[arg-type]
    assert (service / "cgroup.subtree_control").read_text() == "+pids +memory"
    assert found.cgroups("local-1", 2.0) == [
        {
            "folder": str(service / "local-1"),
            "files": {"pids.max": str(PROCESSES), "memory.max": str(2 << 30)},
        }
    ]
    (group,) = found.cgroups("local-1", None)
    assert group["files"] == {"pids.max": str(PROCESSES)}


def test_without_cgroups_a_uid_of_its_own_bounds_the_processes(tmp_path: Path) -> None:
    assert find_limits(has_own_uid=False, membership="0::/\n", mount=tmp_path).kind == "none"
    found = find_limits(has_own_uid=True, membership="0::/\n", mount=tmp_path)
    done = subprocess.run([*found.command, "bash", "-c", "ulimit -u"], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= PROCESSES
    assert Limits(kind="none", parents={}).command == ()
