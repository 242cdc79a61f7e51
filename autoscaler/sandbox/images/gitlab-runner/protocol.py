"""The runner's side of GitLab's runner API: calls with their retries, and the job trace (GitLab spec section 4)."""

import contextlib
import hashlib
import hmac
import http.client
import json
import random
import secrets
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

VERSION, REVISION = "19.4.0", "d79f3e7b"
UPDATE_INTERVAL_S, MAX_INTERVAL_S, TOUCH_S = 3.0, 900.0, 30.0
MAX_PATCH = 1 << 20
RETRIED = {408, 429, 500, 502, 503, 504}
ATTEMPTS, FINAL_UPDATES = 5, 10
CLIENT_ERROR = -1
FEATURES = {  # name: whether this stand-in has it; the names and their order are the real runner's
    "variables": True,
    "image": False,
    "services": False,
    "artifacts": False,
    "cache": True,
    "fallback_cache_keys": False,
    "shared": True,
    "upload_multiple_artifacts": False,
    "upload_raw_artifacts": False,
    "session": False,
    "terminal": False,
    "refspecs": True,
    "masking": True,
    "proxy": False,
    "raw_variables": True,
    "artifacts_exclude": False,
    "multi_build_steps": False,
    "trace_reset": True,
    "trace_checksum": True,
    "trace_size": True,
    "vault_secrets": False,
    "cancelable": True,
    "return_exit_code": True,
    "service_variables": False,
    "service_multiple_aliases": False,
    "image_executor_opts": False,
    "service_executor_opts": False,
    "cancel_gracefully": True,
    "native_steps_integration": False,
    "two_phase_job_commit": True,
    "job_inputs": True,
}


def log(level: str, text: str) -> None:
    """One line on stderr, as the real runner logs."""
    print(f"{level}: {text}", file=sys.stderr, flush=True)


def system_id() -> str:
    """`s_` + 12 hex of HMAC-SHA256(machine id, "gitlab-runner"), else `r_` + 12 random characters."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if machine_id := Path(path).read_text().strip():
                digest = hmac.new(machine_id.encode(), b"gitlab-runner", hashlib.sha256)
                return "s_" + digest.hexdigest()[:12]
    return "r_" + "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz0123456789") for _ in range(12))


class Answer:
    """Status (CLIENT_ERROR when there was no usable answer), headers and body of a call."""

    def __init__(self, status: int, headers: Any = None, body: bytes = b"") -> None:
        self.status, self.body = status, body
        self.headers: Any = headers or {}
        self.job_status = str(self.headers.get("Job-Status") or "")

    def interval_s(self, default: float) -> float:
        """The trace update interval that the server wants."""
        value = str(self.headers.get("X-GitLab-Trace-Update-Interval") or "")
        return min(float(value), MAX_INTERVAL_S) if value.isdecimal() and int(value) > 0 else default

    @property
    def aborts(self) -> bool:
        """The job is no longer ours: stop now and send nothing more."""
        return self.status in {403, 404} or self.job_status in {"canceled", "failed"}


class Server:
    """The GitLab this runner talks to."""

    def __init__(self, url: str, token: str, ca_file: str | None, shell: str) -> None:
        self.url, self.token, self.system_id = url.rstrip("/"), token, system_id()
        context = ssl.create_default_context(cafile=ca_file)
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        self.info = {
            "name": "gitlab-runner",
            "version": VERSION,
            "revision": REVISION,
            "platform": "linux",
            "architecture": "amd64",
            "executor": "shell",
            "shell": shell,
            "features": FEATURES,
            "config": {"gpus": ""},
        }

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes, *, wants_json: bool = False) -> Answer:
        """One call with the client's own retries of overload and gateway errors."""
        backoff_s = 0.1
        for attempt in range(1, ATTEMPTS + 1):
            answer = self._once(method, path, headers, body, wants_json)
            if attempt == ATTEMPTS or not (answer.status in RETRIED or answer.status >= 512):
                return answer
            asked_s = retry_after_s(answer)
            time.sleep(backoff_s * random.uniform(0.5, 1.5) if asked_s is None else asked_s)  # noqa: S311 - jitter
            backoff_s = min(60.0, backoff_s * 2)
        return answer

    def _once(self, method: str, path: str, headers: dict[str, str], body: bytes, wants_json: bool) -> Answer:
        agent = f"gitlab-runner {VERSION} (main; go1.24.5; linux/amd64)"
        headers = {"User-Agent": agent, "X-Request-Id": secrets.token_hex(16), **headers}
        # The address is what the caller was told to serve.
        request = urllib.request.Request(f"{self.url}/api/v4/{path}", body, headers, method=method)  # noqa: S310
        try:
            with self._opener.open(request, timeout=60) as reply:
                answer = Answer(reply.status, reply.headers, reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())
        except (OSError, http.client.HTTPException) as error:
            log("ERROR", f"{method} {path}: {error}")
            return Answer(CLIENT_ERROR)
        if wants_json and answer.status in {200, 201} and answer.headers.get_content_type() != "application/json":
            log("ERROR", f"{method} {path}: server should return application/json")
            return Answer(CLIENT_ERROR)
        return answer

    def send(self, method: str, path: str, header: str, token: str, fields: dict[str, Any]) -> Answer:
        """A JSON call with the token in header and body."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", header: token}
        body = json.dumps({"info": self.info, "token": token, **fields}).encode()
        return self.call(method, path, headers, body, wants_json=method == "POST")


def retry_after_s(answer: Answer) -> float | None:
    """How long the server asks to wait: RateLimit-ResetTime, else Retry-After."""
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(answer.headers["RateLimit-ResetTime"]).timestamp() - time.time())
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return float(answer.headers["Retry-After"])
    return None


class Trace:
    """The job's log: collects bytes, masks secrets, sends what is new, and hears of cancellation (`attention`)."""

    def __init__(self, server: Server, job: dict[str, Any], *, limit: int, attention: threading.Event) -> None:
        self._server, self._job, self._limit = server, job, limit
        self._masked = [
            v["value"].encode() for v in job["variables"] if v.get("masked") and len(v.get("value") or "") >= 8
        ]
        self._lock = threading.Lock()
        self._bytes = bytearray()
        self._sent = 0
        self._closing = threading.Event()
        self._last_sent = time.monotonic()
        self._thread = threading.Thread(target=self._send_forever, daemon=True)
        self.interval_s = UPDATE_INTERVAL_S
        self.patching = True
        self.aborted = threading.Event()
        self.canceling = threading.Event()
        self._attention = attention

    def write(self, chunk: bytes) -> None:
        """Append, with masked values replaced; beyond the limit the rest is dropped."""
        for value in self._masked:
            chunk = chunk.replace(value, b"[MASKED]")
        with self._lock:
            room = self._limit - len(self._bytes)
            self._bytes += chunk[: max(0, room)]

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Stop the periodic sending; `flush` and `finish` follow."""
        self._closing.set()
        self._thread.join()

    def put(self, state: str, **fields: Any) -> Answer:
        """PUT jobs/:id."""
        path = f"jobs/{self._job['id']}"
        answer = self._server.send("PUT", path, "JOB-TOKEN", self._job["token"], {"state": state, **fields})
        self._heed(answer)
        return answer

    def _heed(self, answer: Answer) -> None:
        self.interval_s = answer.interval_s(self.interval_s)
        if answer.aborts:
            self.aborted.set()
            self._attention.set()
        elif answer.job_status == "canceling":
            self.canceling.set()
            self._attention.set()

    def _send_forever(self) -> None:
        while not self._closing.wait(self.interval_s) and not self.aborted.is_set():
            if not self._send_some() and time.monotonic() - self._last_sent >= TOUCH_S:
                self._last_sent = time.monotonic()
                self.put("running")

    def _send_some(self) -> bool:
        """One patch; False when there was nothing to send or it was not taken."""
        with self._lock:
            start, chunk = self._sent, bytes(self._bytes[self._sent : self._sent + MAX_PATCH])
        if not chunk or not self.patching:
            return False
        headers = {
            "Content-Type": "text/plain",
            "Content-Range": f"{start}-{start + len(chunk) - 1}",
            "JOB-TOKEN": self._job["token"],
        }
        self._last_sent = time.monotonic()
        answer = self._server.call("PATCH", f"jobs/{self._job['id']}/trace?debug_trace=false", headers, chunk)
        if answer.status == 202:
            self._sent = start + len(chunk)
        elif answer.status == 416:
            self._sent = int(str(answer.headers.get("Range") or "0-0").rpartition("-")[2])
        if answer.status == 404:
            self.patching = False
        else:
            self._heed(answer)
        return answer.status in {202, 416}

    def flush(self) -> None:
        """Send what is left."""
        failures = 0
        while self.patching and not self.aborted.is_set() and self._sent < len(self._bytes) and failures < ATTEMPTS:
            if not self._send_some():
                failures += 1
                time.sleep(min(self.interval_s, 0.2 * failures))

    def finish(self, state: str, fields: dict[str, Any]) -> None:
        """The final update: 202 again later, 412 the whole trace again, other failures ten times with back-off."""
        checksum = f"crc32:{zlib.crc32(self._bytes):08x}"
        fields = {**fields, "checksum": checksum, "output": {"checksum": checksum, "bytesize": len(self._bytes)}}
        failures, backoff_s = 0, 1.0
        while not self.aborted.is_set() and failures < FINAL_UPDATES:
            self.flush()
            answer = self.put(state, **fields)
            if answer.status == 200 or answer.aborts:
                return
            if answer.status == 202:
                time.sleep(self.interval_s)
                continue
            failures += 1
            if answer.status == 412:
                self._sent = 0
            else:
                time.sleep(backoff_s)
                backoff_s = min(3600.0, backoff_s * 2)
