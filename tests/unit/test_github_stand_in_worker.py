"""How the stand-in runner ends a step: interrupt, then terminate, then kill, with its own two waits."""

import importlib.util
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

BIN = Path(__file__).parents[2] / "autoscaler" / "sandbox" / "images" / "actions-runner" / "bin"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program's module, with its waits shortened to what a test can afford."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("runner_worker", BIN / "runner_worker.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (module.INTERRUPT_GRACE_S, module.TERMINATE_GRACE_S) == (7.5, 2.5)
    monkeypatch.setattr(module, "INTERRUPT_GRACE_S", 0.3)
    monkeypatch.setattr(module, "TERMINATE_GRACE_S", 0.3)
    return module


def stopped(program: ModuleType, folder: Path, *script: str, reason: str) -> tuple[str, list[str]]:
    """Stops a job of two steps once its first has begun: its result, and how each step ended."""
    environment = {"GITHUB_REPOSITORY": "octo-org/app"}
    steps = [{"name": "first", "script": list(script)}, {"name": "second", "script": ["true"]}]
    job = {"name": "build", "steps": steps, "environment": environment}
    worker = program.Worker(folder / "_work", job, folder / "log")
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(worker.run()))
    thread.start()
    deadline = time.monotonic() + 10
    while not (folder / "begun").exists():
        assert time.monotonic() < deadline
        thread.join(0.01)
    worker.stop(reason)
    thread.join(10)
    assert not thread.is_alive()
    return results[0], [step["conclusion"] for step in worker.steps]


def test_a_stubborn_step_is_interrupted_terminated_and_killed(program: ModuleType, tmp_path: Path) -> None:
    signals = tmp_path / "signals"
    script = (
        f"trap 'echo int >> {signals}' INT",
        f"trap 'echo term >> {signals}' TERM",
        f"touch {tmp_path}/begun",
        "while :; do sleep 0.05 || true; done",
    )
    result, steps = stopped(program, tmp_path, *script, reason="shutdown")
    assert result == "failure"
    assert steps == ["success", "cancelled", "skipped", "success"]
    assert signals.read_text().split() == ["int", "term"]


def test_a_step_that_heeds_the_interrupt_is_not_terminated(program: ModuleType, tmp_path: Path) -> None:
    signals = tmp_path / "signals"
    script = (
        f"trap 'echo int >> {signals}; exit 1' INT",
        f"trap 'echo term >> {signals}' TERM",
        f"touch {tmp_path}/begun",
        "while :; do sleep 0.05 || true; done",
    )
    result, _ = stopped(program, tmp_path, *script, reason="cancel")
    assert result == "cancelled"
    assert signals.read_text().split() == ["int"]


def test_what_a_step_left_running_dies_with_it(program: ModuleType, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = (f"sleep 300 & echo $! > {pid}", f"touch {tmp_path}/begun", "sleep 300")
    stopped(program, tmp_path, *script, reason="shutdown")
    state = Path(f"/proc/{pid.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
