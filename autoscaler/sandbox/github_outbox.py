"""Which events of the sandbox's github.com go to which hooks, and in what disorder.

Builds the payload at the moment of the event, as later changes must not show in it. Sends nothing: the HTTP face
or a simulation drains it.
"""

import random
import uuid
from collections.abc import Callable

from autoscaler.sandbox import github_payloads as payloads
from autoscaler.sandbox.github_model import Hook, Job, Json, Repository, Run, Webhook, WorldPolicy

EVENTS = ("workflow_job", "workflow_run")


class Outbox:
    """Hooks and the events that wait to be sent to them. GUIDs count up from the policy's seed."""

    def __init__(self, urls: payloads.Urls, policy: WorldPolicy) -> None:
        self.urls = urls
        self.hooks: dict[int, Hook] = {}
        self._policy = policy
        self._dice = random.Random(f"{policy.seed}/outbox")  # noqa: S311 - repeatable quirks, not secrets
        self._waiting: list[Webhook] = []
        self._guids = 0
        self._repositories: dict[str, Json] = {}

    def job_event(self, action: str, job: Job, run: Run, repo: Repository) -> None:
        """`workflow_job`. The `queued` that follows `waiting` still says waiting inside (specs B2)."""

        def body() -> Json:
            row = payloads.job(job, run, self.urls)
            if action == "queued" and job.spec.name in self._policy.protected:
                row["status"] = "waiting"
            return {"workflow_job": row}

        self._emit("workflow_job", action, repo, body)

    def run_event(self, action: str, run: Run, repo: Repository) -> None:
        def body() -> Json:
            return {
                "workflow_run": payloads.run(run, repo, self.urls),
                "workflow": payloads.workflow(run, repo, self.urls),
            }

        self._emit("workflow_run", action, repo, body)

    def ping(self, hook: Hook) -> None:
        """What a hook receives when it is made, and on request."""
        scoped = {"hook": payloads.hook(hook, self.urls)} if hook.scope is not None else {}
        body = {"zen": "Keep it logically awesome.", "hook_id": hook.id, **scoped}
        self._put(hook, "ping", "", None, None, body)

    def drain(self) -> list[Webhook]:
        """What waits to be sent, in order but for the policy's swaps and repeats."""
        waiting, self._waiting = self._waiting, []
        out: list[Webhook] = []
        for webhook in waiting:
            if out and self._policy.swapped_webhooks > self._dice.random():
                out.insert(len(out) - 1, webhook)
            else:
                out.append(webhook)
            if self._policy.duplicate_webhooks > self._dice.random():
                out.append(webhook)
        return out

    def _emit(self, event: str, action: str, repo: Repository, body: Callable[[], Json]) -> None:
        scopes = (None, repo.owner.login, repo.full_name)
        hooks = [hook for hook in self.hooks.values() if event in hook.events and hook.scope in scopes]
        if not hooks:
            return
        payload = {
            "action": action,
            **body(),
            "repository": self._repository(repo),
            "organization": payloads.organization(repo.owner, self.urls),
            "sender": payloads.sender(self.urls),
        }
        installation = repo.owner.installation_id
        for hook in hooks:
            if hook.scope is None:
                lite = {"id": installation, "node_id": payloads.node_id("I", installation)}
                self._put(hook, event, action, installation, repo.id, {**payload, "installation": lite})
            else:
                self._put(hook, event, action, None, repo.id, payload)

    def _put(
        self, hook: Hook, event: str, action: str, installation_id: int | None, repository_id: int | None, payload: Json
    ) -> None:
        self._guids += 1
        self._waiting.append(
            Webhook(
                hook_id=hook.id,
                guid=str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self._policy.seed}/{self._guids}")),
                event=event,
                action=action,
                installation_id=installation_id,
                repository_id=repository_id,
                payload=payload,
            )
        )

    def _repository(self, repo: Repository) -> Json:
        row = self._repositories.get(repo.full_name)
        if row is None:
            row = {**payloads.repository(repo, self.urls), "custom_properties": {}}
            self._repositories[repo.full_name] = row
        return row
