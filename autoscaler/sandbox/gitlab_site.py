"""What the parts of the sandbox's GitLab face share: the world, the clock, tokens, limits and hooks; and refusals."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from autoscaler.sandbox.gitlab_access import AccessTokens, GitLabLimits, InsufficientScope, Windows
from autoscaler.sandbox.gitlab_model import GitLabRefusal, Group, Job, Project, Runner
from autoscaler.sandbox.gitlab_webhooks import Webhooks
from autoscaler.sandbox.gitlab_world import GitLabWorld


@dataclass(slots=True, kw_only=True)
class Site:
    """One served GitLab. `changed` is set, and replaced, whenever the queue changed: long polls wait on it."""

    world: GitLabWorld
    clock: Callable[[], float]
    tokens: AccessTokens
    windows: Windows
    limits: GitLabLimits
    webhooks: Webhooks
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    published: str = ""

    def project(self, request: web.Request) -> Project:
        """The project of the path, by id or url-encoded full path."""
        key = request.match_info["project"]
        return self.world.find_project(int(key) if key.isdigit() else key)

    def group(self, request: web.Request) -> Group:
        """The group of the path, by id or url-encoded full path."""
        key = request.match_info["group"]
        return self.world.find_group(int(key) if key.isdigit() else key)

    def job(self, request: web.Request) -> Job:
        """The job of the path within its project; GitLabRefusal 404."""
        job = self.world.job(int(request.match_info["job"]))
        if job.project_id != self.project(request).id:
            raise GitLabRefusal(404, "404 Not found")
        return job

    def runner(self, request: web.Request) -> Runner:
        """The runner of the path."""
        return self.world.runner(int(request.match_info["runner"]))

    def settle(self) -> None:
        """Let time pass in the world and publish what that caused."""
        self.world.advance(self.clock())
        self.publish()

    def publish(self) -> None:
        """Hand the world's webhooks to the senders, and end the long polls when the queue changed."""
        for delivery in self.world.drain_webhooks():
            self.webhooks.enqueue(delivery)
        if self.published != self.world.queue_version():
            self.published = self.world.queue_version()
            self.changed.set()
            self.changed = asyncio.Event()


def refusal(error: GitLabRefusal) -> web.Response:
    """A refusal as GitLab's API words it."""
    headers = {} if error.job_status is None else {"Job-Status": error.job_status}
    if isinstance(error, InsufficientScope):
        return web.json_response(error.body, status=403)
    return web.json_response({"message": error.message}, status=error.status, headers=headers)
