"""The agent's parts that need no machine: how it is packed, what it proves, how it talks HTTP, how it waits."""

import ast
import asyncio
import hashlib
import hmac
import io
import json
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from autoscaler.check import check
from autoscaler.spi import ProviderName, Verdict
from runners.agent.client import Client, Unreachable
from runners.agent.evidence import local_evidence
from runners.agent.hooks import write_hooks
from runners.agent.runner import Command, Runner, github_command, gitlab_command
from runners.agent.session import Backoff
from runners.agent.user import User
from runners.bootstrap import boot_document, build_agent
from tests.config_files import ENVIRON, minimal_document, write


@contextmanager
def raw_server(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes one request and answers with these bytes, then closes."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                while not received or b"\r\n\r\n" not in received[0] or not received[0].rstrip().endswith(b"}"):
                    part = connection.recv(65536)
                    received[:] = [b"".join(received) + part]
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
        thread.join(5)


def test_the_archive_is_repeatable_and_its_digest_is_that_of_its_bytes() -> None:
    first = build_agent()
    build_agent.cache_clear()
    assert build_agent() == first
    assert hashlib.sha256(first.data).hexdigest() == first.sha256


def test_the_archive_runs_on_its_own_and_names_its_usage(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(build_agent().data)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "agent.pyz"), "--nonsense", "x"], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"usage: agent --folder" in done.stderr


def test_a_broken_boot_document_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "agent.pyz").write_bytes(build_agent().data)
    (tmp_path / "boot.json").write_text('{"daemon_url": "ftp://nowhere"}')
    arguments = ["--folder", str(tmp_path), "--boot", str(tmp_path / "boot.json"), "--evidence", "unheard-of"]
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "agent.pyz"), *arguments], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"cannot start" in done.stderr


def test_the_sources_are_python_3_9_and_import_the_standard_library_and_each_other_only() -> None:
    with zipfile.ZipFile(io.BytesIO(build_agent().data)) as archive:
        for name in archive.namelist():
            tree = ast.parse(archive.read(name), filename=name, feature_version=(3, 9))
            for node in ast.walk(tree):
                module = node.module if isinstance(node, ast.ImportFrom) else None
                names = [module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for imported in names:
                    top = imported.partition(".")[0]
                    assert top in sys.stdlib_module_names or imported.startswith("runners.agent"), (name, imported)


def test_the_boot_document_holds_what_the_protocol_says() -> None:
    text = boot_document(
        daemon_url="http://127.0.0.1:8080",
        provider=ProviderName("local"),
        boot_timeout=timedelta(minutes=10),
        max_lifetime=timedelta(hours=6),
        image={"github_runner": "/opt/actions-runner"},
    )
    document = json.loads(text)
    assert document["version"] == 1
    assert document["agent_sha256"] == build_agent().sha256
    assert (document["boot_timeout_s"], document["max_lifetime_s"]) == (600.0, 21600.0)
    assert document["image"] == {"github_runner": "/opt/actions-runner"}


def test_local_evidence_is_an_hmac_over_machine_time_and_claim() -> None:
    document = local_evidence("local-1", b"k" * 32, "ab" * 32, 1_700_000_000.9)
    expected = hmac.new(b"k" * 32, f"local-1|1700000000|{'ab' * 32}".encode(), hashlib.sha256).hexdigest()
    assert document == {"instance_id": "local-1", "time": "1700000000", "signature": expected}


@pytest.mark.parametrize(
    "answer",
    [
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 8\r\n\r\n{"a": 1}',
        b'HTTP/1.0 200 OK\r\ncontent-type: application/json; charset=utf-8\r\n\r\n{"a": 1}',
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'3\r\n{"a\r\n5;x=y\r\n": 1}\r\n0\r\n\r\n',
    ],
    ids=["length", "close", "chunked"],
)
def test_an_answer_is_read_however_its_end_is_told(answer: bytes) -> None:
    with raw_server(answer) as (url, received):
        assert Client(url).post("/x", {"b": 2}, bearer="k").body == {"a": 1}
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"Authorization: Bearer k" in head
    assert json.loads(body) == {"b": 2}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 80\r\n\r\n{"a": 1}',
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{not json",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
    ],
    ids=["nothing", "not-http", "short", "short-chunk", "not-json", "no-status"],
)
def test_garbage_is_unreachable_and_never_shows_the_key(answer: bytes) -> None:
    with raw_server(answer) as (url, _), pytest.raises(Unreachable) as error:
        Client(url).post("/x", {}, bearer="the-key")
    assert "the-key" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "autoscaler test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    return folder / "cert.pem", folder / "key.pem"


def test_of_a_file_with_certificate_and_key_machines_get_the_certificate_alone(authority: tuple[Path, Path]) -> None:
    certificate, key = (path.read_text() for path in authority)
    text = boot_document(
        daemon_url="https://127.0.0.1:8080",
        provider=ProviderName("local"),
        boot_timeout=timedelta(minutes=10),
        max_lifetime=timedelta(hours=6),
        image={},
        ca_pem=f"Bag Attributes: mine\n{key}{certificate}{key}{certificate}",
    )
    assert "PRIVATE KEY" not in text
    assert key.splitlines()[1] not in text
    assert json.loads(text)["ca_pem"] == f"{certificate.strip()}\n{certificate.strip()}"


async def test_a_certificate_file_that_holds_the_key_is_refused_by_the_check(
    authority: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = authority
    both = tmp_path / "both.pem"
    both.write_text(certificate.read_text() + key.read_text())
    for file, verdict in ((certificate, Verdict.OK), (both, Verdict.REFUSED)):
        document = minimal_document()
        document["provider"][0]["state_dir"] = str(tmp_path / "machines")
        document["autoscaler"] |= {
            "public_url": "https://127.0.0.1",
            "store": f"sqlite:///{tmp_path}/autoscaler.db",
            "tls": {"certificate": str(file), "private_key": str(key)},
        }
        report = await check(write(document, tmp_path), online=False, environ=ENVIRON)
        assert [one.verdict for one in report.findings if one.key.startswith("autoscaler.tls")] == [verdict]


async def test_over_tls_only_the_given_authority_is_trusted(authority: tuple[Path, Path]) -> None:
    async def hello(_: web.Request) -> web.Response:
        return web.json_response({"instance": "i-1"})

    app = web.Application()
    app.router.add_post("/agent/v1/hello", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority)
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    trusting, wary = Client(url, authority[0].read_text()), Client(url)
    try:
        assert (await asyncio.to_thread(trusting.post, "/agent/v1/hello", {})).body == {"instance": "i-1"}
        with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(wary.post, "/agent/v1/hello", {})
    finally:
        await runner.cleanup()


def test_retry_after_is_read() -> None:
    with raw_server(b"HTTP/1.1 503 Busy\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n") as (url, _):
        answer = Client(url).post("/x", {})
    assert (answer.status, answer.retry_after_s) == (503, 5.0)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:80", "", "http://"])
def test_a_url_that_is_neither_http_nor_https_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="neither http nor https"):
        Client(url)


def test_waits_double_up_to_five_seconds_and_are_jittered() -> None:
    backoff = Backoff()
    waits = [backoff.next_s() for _ in range(12)]
    assert 0.05 <= waits[0] <= 0.1
    assert all(2.5 <= wait <= 5.0 for wait in waits[6:])
    assert len(set(waits)) == len(waits)
    backoff.reset()
    assert backoff.next_s() <= 0.1


def test_no_secret_is_in_an_argument() -> None:
    hooks = {"job_started": "/h/s.sh", "job_completed": "/h/c.sh"}
    github = github_command("/opt/runner", "s3cret", hooks, {"HOME": "/home/r"})
    gitlab = gitlab_command("/usr/bin/gitlab-runner", "s3cret", {"url": "https://gitlab.test"}, {"HOME": "/home/r"})
    assert github.argv == ["/opt/runner/run.sh"]
    assert gitlab.argv[:2] == ["/usr/bin/gitlab-runner", "run-single"]
    assert "s3cret" not in " ".join([*github.argv, *gitlab.argv])


def test_a_hook_without_an_agent_does_no_harm(tmp_path: Path) -> None:
    paths = write_hooks(str(tmp_path), {})
    assert subprocess.run(["bash", "-e", paths["job_started"]], check=False).returncode == 0


def test_the_images_own_hook_runs_after_ours_and_its_exit_code_counts(tmp_path: Path) -> None:
    (tmp_path / "own.sh").write_text("exit 3\n")
    paths = write_hooks(str(tmp_path), {"job_completed": str(tmp_path / "own.sh")})
    assert subprocess.run(["bash", "-e", paths["job_completed"]], check=False).returncode == 3


def test_runners_hear_interrupts_although_the_agents_parent_ignored_them() -> None:
    asks = "import signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    script = (
        "import signal, subprocess, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"ask = [sys.executable, '-c', {asks!r}]\n"
        "before = subprocess.check_output(ask, text=True)\n"
        "from runners.agent.main import hear_interrupts; hear_interrupts()\n"
        "print(before.strip(), subprocess.check_output(ask, text=True).strip())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert told.stdout.split() == ["True", "False"]


def test_a_runners_end_is_told_though_its_job_put_a_folder_where_the_secret_was(tmp_path: Path) -> None:
    """Otherwise the daemon would wait for a runner that is long gone."""
    secret_file = tmp_path / "runner.toml"
    ended = threading.Event()
    codes: list[int] = []

    def on_exit(code: int) -> None:
        codes.append(code)
        ended.set()

    Runner(
        Command(
            argv=["/bin/sh", "-c", f"rm {secret_file} && mkdir {secret_file} && exit 3"],
            cwd=str(tmp_path),
            env={"PATH": "/usr/bin:/bin"},
            stop_signal=15,
            started_words=(),
            completed_words=(),
            secret_file=str(secret_file),
            secret_text="a secret",
        ),
        secret="a secret",
        user=User(name=""),
        log_path=str(tmp_path / "runner.log"),
        on_line_kind=lambda _: None,
        on_exit=on_exit,
    )
    assert ended.wait(10)
    assert codes == [3]
