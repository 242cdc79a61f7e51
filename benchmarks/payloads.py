"""Signed `workflow_job` webhooks of 12,289 bytes, the size of a real one, each for a job of its own."""

import hashlib
import hmac
import itertools
import json
import uuid
from collections.abc import Iterator

from autoscaler.sandbox.github_world import GitHubWorld
from autoscaler.sandbox.workload import JobSpec, RunSpec
from benchmarks.sender import post
from benchmarks.site import GITHUB_LABELS, GITHUB_REPO

SIZE = 12_289
_JOB_ID, _RUN_ID = 77_000_000_000, 88_000_000_000


def template() -> bytes:
    """A queued job's webhook as the sandbox's GitHub writes it, its repository's description padded to the size."""
    world = GitHubWorld([GITHUB_REPO])
    world.add_hook(None, "http://127.0.0.1:9/", secret=b"unused", now=0.0)
    job = JobSpec(key="test", name="test (3.12, ubuntu, integration)", labels=GITHUB_LABELS)
    run_id = world.submit(RunSpec(repo=GITHUB_REPO, workflow="ci", jobs=(job,)), 1_700_000_000.0)
    payload = next(sent for sent in world.drain_webhooks() if sent.event == "workflow_job").payload
    text = _compact(payload)
    text = text.replace(str(payload["workflow_job"]["id"]), str(_JOB_ID)).replace(str(run_id), str(_RUN_ID))
    payload = json.loads(text)
    payload["repository"]["topics"] = [f"topic-{i}" for i in range(20)]
    payload["repository"]["description"] = ""
    payload["repository"]["description"] = "x" * (SIZE - len(_compact(payload)))
    return _compact(payload).encode()


def _compact(payload: object) -> str:
    return json.dumps(payload, separators=(",", ":"))


class Deliveries:
    """Requests without end, ready for the wire; no job and no delivery id comes twice."""

    def __init__(self, secret: str) -> None:
        self._key = secret.encode()
        self._body = template()
        self._numbers = itertools.count(1)

    def take(self, count: int, path: str) -> list[bytes]:
        return list(itertools.islice(self._requests(path), count))

    def _requests(self, path: str) -> Iterator[bytes]:
        for number in self._numbers:
            body = self._body.replace(str(_JOB_ID).encode(), str(_JOB_ID + number).encode())
            body = body.replace(str(_RUN_ID).encode(), str(_RUN_ID + number).encode())
            headers = {
                "Content-Type": "application/json",
                "User-Agent": "GitHub-Hookshot/044aadd",
                "X-GitHub-Delivery": str(uuid.uuid4()),
                "X-GitHub-Event": "workflow_job",
                "X-Hub-Signature-256": "sha256=" + hmac.new(self._key, body, hashlib.sha256).hexdigest(),
            }
            yield post(path, headers, body)
