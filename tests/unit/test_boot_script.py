"""The boot script, run by /bin/sh as cloud-init would, against a small server; a stub where the agent would be."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from autoscaler.spi import ProviderName
from providers.boot_script import boot_script
from runners.bootstrap import boot_document

AGENT = b"import json, sys\nboot = json.load(open(sys.argv[4]))\nprint('agent', *sys.argv[1:], boot['batch'])\n"
LOOPBACK = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}


@contextmanager
def daemon(answers: list[bytes]) -> Iterator[str]:
    """Serves these as the agent, one after the other, the last one for ever; an empty one is a 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(200 if body and self.path == "/x/agent/v1/agent.pyz" else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/x"
    server.shutdown()
    thread.join()
    server.server_close()


def document(url: str, *, boot_timeout_s: float = 20.0, ca_pem: str = "") -> str:
    made = json.loads(
        boot_document(
            daemon_url=url,
            provider=ProviderName("aws"),
            boot_timeout=timedelta(seconds=boot_timeout_s),
            max_lifetime=timedelta(hours=1),
            image={"github_runner": "/opt/it's $HOME `here`"},
            ca_pem=ca_pem,
        )
    )
    return json.dumps(made | {"agent_sha256": hashlib.sha256(AGENT).hexdigest()})


def run(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **LOOPBACK},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("evidence", ["aws", "gce"])
def test_the_agent_is_downloaded_checked_and_run_with_the_document(evidence: Any, tmp_path: Path) -> None:
    with daemon([b"", b"other bytes", AGENT]) as url:
        done = run(boot_script(document(url), evidence=evidence, batch="b-1"), tmp_path)
    (folder,) = tmp_path.glob("autoscaler-agent.*")
    assert done.returncode == 0, done.stderr
    arguments = f"--folder {folder} --boot {folder}/boot.json --evidence {evidence}"
    assert done.stdout.splitlines() == [f"agent {arguments} b-1"]
    assert folder.stat().st_mode & 0o077 == 0
    assert "its sha256 is not the one" in done.stderr
    assert json.loads((folder / "boot.json").read_text()) == {**json.loads(document(url)), "batch": "b-1"}


def test_a_wrong_agent_is_never_run_and_the_machine_ends_at_its_boot_timeout(tmp_path: Path) -> None:
    with daemon([b"print('evil')"]) as url:
        done = run(boot_script(document(url, boot_timeout_s=0.3), evidence="gce", batch="b-1"), tmp_path)
    assert done.stdout == ""
    assert "boot_timeout_s is over" in done.stderr
    assert done.returncode == 0


def test_the_script_is_small_enough_with_a_large_certificate() -> None:
    pem = f"-----BEGIN CERTIFICATE-----\n{'A' * 4000}\n-----END CERTIFICATE-----"
    script = boot_script(document("https://ci.example.org", ca_pem=pem), evidence="aws")
    assert pem.replace("\n", "\\n") in script
    assert len(script.encode()) < 10_000


def test_without_a_batch_the_script_is_the_same_for_all_machines_of_a_pool() -> None:
    text = document("https://ci.example.org")
    assert boot_script(text, evidence="aws") == boot_script(text, evidence="aws")
    assert '"batch"' not in boot_script(text, evidence="aws")


def in_a_machine(machine: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run in namespaces of its own, as root, with `machine` as /var/lib and programs of /usr/local/bin of our own."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        pytest.skip("bwrap is not installed: nothing else keeps a script that powers off from this host")
    mounts = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run", "--tmpfs", "/tmp"]
    mounts += ["--bind", str(machine / "lib"), "/var/lib", "--ro-bind", str(machine / "bin"), "/usr/local/sbin"]
    environ = ["--clearenv", "--setenv", "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    isolation = ["--unshare-user", "--unshare-pid", "--uid", "0", "--gid", "0"]
    done = subprocess.run(
        [bwrap, *isolation, *mounts, *environ, *command], capture_output=True, text=True, timeout=60, check=False
    )
    if "bwrap:" in done.stderr:
        pytest.skip(f"bwrap cannot make namespaces here: {done.stderr.strip()}")
    return done


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """What a cloud's machine has of cloud-init, and a `poweroff` that only says so."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "poweroff").write_text("#!/bin/sh\necho powered off\n")
    (tmp_path / "bin" / "poweroff").chmod(0o755)
    (tmp_path / "lib/cloud/scripts/per-boot").mkdir(parents=True)
    (tmp_path / "lib/cloud/data").mkdir()
    (tmp_path / "lib/cloud/data/instance-id").write_text("i-1\n")
    return tmp_path


def test_a_real_machine_powers_off_after_its_agent_and_boots_again_by_itself(machine: Path) -> None:
    again = "/var/lib/cloud/scripts/per-boot/autoscaler"
    with daemon([AGENT]) as url:
        (machine / "lib/part-001").write_text(boot_script(document(url), evidence="aws", batch="b-1"))
        first = in_a_machine(machine, ["/bin/sh", "/var/lib/part-001"])
        second = in_a_machine(machine, [again])
        (machine / "lib/cloud/data/instance-id").write_text("i-2\n")
        image_of_it = in_a_machine(machine, [again])
    for boot in (first, second):
        ran, ended = boot.stdout.splitlines()
        assert ran.startswith("agent --folder /var/lib/autoscaler-agent.")
        assert ended == "powered off"
    assert (image_of_it.returncode, image_of_it.stdout) == (0, "")
    assert len(list((machine / "lib").glob("autoscaler-agent.*"))) == 1


def test_a_machine_that_never_gets_its_agent_powers_off(machine: Path) -> None:
    with daemon([b""]) as url:
        (machine / "lib/part-001").write_text(boot_script(document(url, boot_timeout_s=0.2), evidence="gce"))
        done = in_a_machine(machine, ["/bin/sh", "/var/lib/part-001"])
    assert done.stdout == "powered off\n"
    assert not (machine / "lib/cloud/scripts/per-boot/autoscaler").exists()
