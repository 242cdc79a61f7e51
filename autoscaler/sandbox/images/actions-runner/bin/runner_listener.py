"""Stand-in for the actions runner's Runner.Listener: one JIT-configured, ephemeral runner. Standard library only.

    arguments -> config files beside run.sh -> session -> long poll -> one job (runner_worker) -> report -> exit

Usage: runner_listener.py ROOT run --jitconfig BASE64, or the same in ACTIONS_RUNNER_INPUT_JITCONFIG (which keeps it
off the process list). Exit codes: 0 normal end, 1 terminated, 2 retryable, 5 session conflict, 7 version deprecated.
SIGINT and SIGTERM stop it: a running job is ended and reported as failed first (SIGTERM waits 30 s at most).
"""

import base64
import binascii
import datetime
import http.client
import json
import os
import pathlib
import queue
import random
import signal
import sys
import threading
import time
import urllib.parse
from typing import Any

from runner_worker import Json, Worker  # type: ignore[import-not-found, unused-ignore] # found beside it when it runs

VERSION = "2.336.0"
CONFIG_FILES = (".runner", ".credentials", ".credentials_rsaparams")
POLL_TIMEOUT_S = 70
CONFLICT_LIMIT_S = 240
POLL_ERROR_LIMIT = 10
REPORT_ATTEMPTS = 10
SIGTERM_WAIT_S = 30
LEASE_GRACE_S = 300
DELETED = (
    "The runner registration has been deleted from the server, please re-configure. Runner registrations are "
    "automatically deleted for runners that have not connected to the service recently."
)
WORDS = {"success": "Succeeded", "failure": "Failed", "cancelled": "Canceled"}


class Terminated(Exception):
    """The listener ends with this exit code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unreachable(Exception):
    """The broker did not answer, or answered 5xx."""


class Broker:
    """The server's side of one runner. Each call returns (status, body) or raises Unreachable."""

    def __init__(self, url: str, token: str) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._token = token

    def call(self, method: str, path: str, body: Json | None = None, timeout_s: float = 30) -> tuple[int, Json]:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=timeout_s)
        headers = {"Authorization": "Bearer " + self._token, "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, self._url.path + path, body=payload, headers=headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(type(error).__name__) from error
        finally:
            connection.close()
        if response.status >= 500:
            raise Unreachable(f"HTTP {response.status}")
        return response.status, json.loads(text) if text.startswith(b"{") else {}


class Listener:
    """One run from configuration to exit. The main thread decides; others only put events into `_events`."""

    def __init__(self, root: pathlib.Path, settings: Json, credentials: Json) -> None:
        self._root = root
        self._settings = settings
        self._broker = Broker(settings["ServerUrlV2"], credentials["Data"]["token"])
        self._renew_s = float(settings.get("LeaseRenewSeconds", 60))
        self._retry_s = min(15.0, self._renew_s / 4)
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._stopping = threading.Event()

    def run(self) -> int:
        """The exit code. Raises Terminated."""
        signal.signal(signal.SIGINT, lambda *_: self._events.put(("stop", None)))
        signal.signal(signal.SIGTERM, lambda *_: self._events.put(("stop", SIGTERM_WAIT_S)))
        if not self._open_session():
            return 0
        threading.Thread(target=self._poll, args=("Online",), daemon=True).start()
        say("Listening for Jobs")
        while True:
            kind, value = self._events.get()
            if kind == "job":
                self._run_job(value)
                return 0
            if kind == "stop":
                say("Exiting...")
                self._stopping.set()
                self._close_session()
                return 0
            if kind == "deleted":
                raise Terminated(1, DELETED)
            if kind == "unreachable":
                raise Terminated(2, "Too many connection errors, giving up")

    def _open_session(self) -> bool:
        """True with a session, False when asked to stop before there was one."""
        conflict_until = time.monotonic() + CONFLICT_LIMIT_S
        while True:
            try:
                status, body = self._broker.call("POST", "/session", {"version": VERSION})
            except Unreachable as error:
                say(f"Runner connect error: {error}. Retrying until reconnected.")
            else:
                if status == 201:
                    print(f"\n√ Connected to GitHub\n\nCurrent runner version: '{VERSION}'", flush=True)
                    return True
                self._refuse_session(status, body, conflict_until)
            if not self._pause(self._retry_s * 2):
                return False

    def _refuse_session(self, status: int, body: Json, conflict_until: float) -> None:
        """Raises Terminated unless the refusal is a conflict that may still pass."""
        message = body.get("message", "")
        if status == 409:
            say("A session for this runner already exists.")
            if time.monotonic() < conflict_until:
                return
            raise Terminated(5, "Stop retrying on SessionConflictException after retried for 240 seconds.")
        if "RunnerVersionTooOld" in message:
            wanted = os.environ.get("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE") == "1"
            raise Terminated(7 if wanted else 1, "An error occurred: " + message)
        raise Terminated(1, "Failed to create a session. " + DELETED)

    def _pause(self, seconds: float) -> bool:
        """False when a stop came in meanwhile."""
        try:
            self._events.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def _close_session(self) -> None:
        try:
            self._broker.call("DELETE", "/session", timeout_s=5)
        except Unreachable as error:
            say(f"Could not delete the session: {error}")

    def _poll(self, status: str) -> None:
        """Long polls until there is a message for this status; runs in a thread of its own."""
        errors = 0
        while not self._stopping.is_set():
            try:
                code, body = self._broker.call("GET", "/message?status=" + status, timeout_s=POLL_TIMEOUT_S)
            except Unreachable:
                errors += 1
                if errors >= POLL_ERROR_LIMIT and status == "Online":
                    self._events.put(("unreachable", None))
                    return
                slower = 1 if errors <= 5 else 2
                self._stopping.wait(self._retry_s * random.uniform(slower, 2 * slower))  # noqa: S311 - jitter
                continue
            errors = 0
            if code == 200:
                self._events.put((body["type"], body.get("job")))
                return
            if code >= 400:
                self._events.put(("deleted", None))
                return

    def _run_job(self, job: Json) -> None:
        say("Running job: {}".format(job["name"]))
        diag = self._root / "_diag"
        diag.mkdir(exist_ok=True)
        log_path = diag / datetime.datetime.now(datetime.UTC).strftime("Worker_%Y%m%d-%H%M%S-utc.log")
        worker = Worker(self._root / self._settings.get("WorkFolder", "_work"), job, log_path)
        over = threading.Event()
        threading.Thread(target=self._poll, args=("Busy",), daemon=True).start()
        threading.Thread(target=self._renew, args=(over,), daemon=True).start()
        threading.Thread(target=self._work, args=(worker,), daemon=True).start()
        result, lost = self._supervise(worker)
        over.set()
        self._stopping.set()
        if not lost:
            self._report(worker, result)
        say("Job {} completed with result: {}".format(job["name"], "Abandoned" if lost else WORDS[result]))
        for name in CONFIG_FILES:
            (self._root / name).unlink(missing_ok=True)

    def _supervise(self, worker: Worker) -> tuple[str, bool]:
        """Passes stops on to the worker until it is done: (result, lease lost)."""
        lost = False
        deadline: float | None = None
        while True:
            try:
                kind, value = self._events.get(timeout=None if deadline is None else deadline - time.monotonic())
            except (queue.Empty, ValueError):
                raise Terminated(1, "The job did not end in time after SIGTERM") from None
            if kind == "done":
                return value, lost
            if kind == "stop":
                worker.stop("shutdown")
                if value is not None and deadline is None:
                    deadline = time.monotonic() + value
            elif kind == "cancel":
                worker.stop("cancel")
            elif kind == "lost":
                lost = True
                worker.stop("lost")

    def _work(self, worker: Worker) -> None:
        try:
            result = worker.run()
        except OSError as error:
            worker.annotations.append(f"The job could not be run: {error}")
            result = "failure"
        self._events.put(("done", result))

    def _renew(self, over: threading.Event) -> None:
        """Keeps the lease; without an answer it goes on until the lease is long over."""
        valid_until = time.monotonic() + LEASE_GRACE_S + 10 * self._renew_s
        pause_s = 0.0
        while not over.wait(pause_s):
            try:
                code, _ = self._broker.call("POST", "/renew", {})
            except Unreachable:
                pause_s = self._retry_s
                if time.monotonic() > valid_until:
                    self._events.put(("lost", None))
                    return
                continue
            if code >= 400:
                self._events.put(("lost", None))
                return
            pause_s = self._renew_s
            valid_until = time.monotonic() + LEASE_GRACE_S + 10 * self._renew_s

    def _report(self, worker: Worker, result: str) -> None:
        body = {"conclusion": result, "steps": worker.steps, "annotations": worker.annotations, "log": worker.log()}
        for _ in range(REPORT_ATTEMPTS):
            try:
                code, answer = self._broker.call("POST", "/complete", body)
            except Unreachable as error:
                say(f"Could not report the result: {error}")
                time.sleep(min(1.0, self._retry_s))
                continue
            if code >= 400:
                say("The result was refused: {}".format(answer.get("message", code)))
            return


def say(text: str) -> None:
    """A line as the runner prints it, with the time in front."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    print(f"{now}: {text}", flush=True)


def jit_config(arguments: list[str]) -> str | None:
    """The JIT configuration from the arguments or the environment; None to use the files that are there."""
    given = os.environ.pop("ACTIONS_RUNNER_INPUT_JITCONFIG", None)
    rest = list(arguments)
    unknown: list[str] = []
    while rest:
        argument = rest.pop(0)
        if argument != "--jitconfig":
            unknown.append(argument)
        elif not rest or rest[0].startswith("--"):
            raise Terminated(1, "A value is required for --jitconfig")
        else:
            given = rest.pop(0)
    if unknown:
        names = ", ".join(f"'{name}'" for name in unknown)
        raise Terminated(
            1,
            f"Unrecognized command-line input arguments for command run: {names}. For usage refer to: "
            "./config.sh --help",
        )
    return given


def unpack(root: pathlib.Path, encoded: str) -> None:
    """Writes the configuration's files into the runner's root, readable by its user alone."""
    try:
        files = json.loads(base64.b64decode(encoded, validate=True))
        contents = {name: base64.b64decode(files[name], validate=True) for name in CONFIG_FILES}
        if set(files) != set(CONFIG_FILES):
            raise ValueError("unexpected files")
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise Terminated(1, f"The JIT configuration is not valid: {type(error).__name__}") from None
    for name, content in contents.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(content)


def set_environment(root: pathlib.Path) -> None:
    """`.env` and `.path` in the root set the environment of the listener and of jobs."""
    env, path = root / ".env", root / ".path"
    for line in env.read_text().splitlines() if env.is_file() else []:
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            os.environ[name.strip()] = value
    if path.is_file():
        os.environ["PATH"] = path.read_text().strip()


def main(argv: list[str]) -> int:
    try:
        if len(argv) < 2 or argv[1] != "run":
            raise Terminated(1, "Usage: runner_listener.py ROOT run --jitconfig BASE64")
        root = pathlib.Path(argv[0])
        encoded = jit_config(argv[2:])
        if encoded is not None:
            unpack(root, encoded)
        if not all((root / name).is_file() for name in CONFIG_FILES):
            raise Terminated(1, "Not configured. Run config.(sh/cmd) to configure the runner.")
        set_environment(root)
        settings = json.loads((root / ".runner").read_text())
        credentials = json.loads((root / ".credentials").read_text())
        return Listener(root, settings, credentials).run()
    except Terminated as error:
        say(str(error))
        return error.code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    # Poll threads may still sit in a long poll: nothing of theirs is worth waiting for.
    os._exit(code)
