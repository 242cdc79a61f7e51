"""A daemon loses a machine, and people read why where they look: through GitHub's and GitLab's own clients."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import github
import gitlab
import pytest

from autoscaler.sandbox.workload import JobSpec, RunSpec
from tests.contract.github_driver import app_identity
from tests.integration.daemon_kit import GITHUB_REPO, GITLAB_REPO, Site, site
from tests.polling import until

AS_APP = 'credentials = {{ app_id = "1234567", private_key = {{ file = "{folder}/app.pem" }} }}'


@pytest.fixture
async def host() -> AsyncIterator[Site]:
    identity, key = app_identity()
    async with site(app=identity) as made:
        daemon = made.daemon()
        folder = daemon.config.parent
        (folder / "app.pem").write_text(key)
        text = daemon.config.read_text()
        token = f'credentials = {{ token = {{ file = "{folder}/github-token" }} }}'
        assert token in text
        daemon.config.write_text(text.replace(token, AS_APP.format(folder=folder)))
        await daemon.start()
        yield made


def a_job(label: str) -> JobSpec:
    return JobSpec(key="build", name="build (x86, `fast`)", labels=(label,), script=("sleep 60",))


def lose_the_machines(host: Site) -> None:
    """As when their cloud takes them without a word."""
    for pid in host.supervisors():
        os.kill(pid, signal.SIGKILL)


async def test_people_read_on_their_commit_and_merge_request_why_a_job_was_lost(host: Site) -> None:
    ref = "refs/merge-requests/4/head"
    run = host.github.submit(RunSpec(repo=GITHUB_REPO, workflow="ci", jobs=(a_job("linux"),), ref=ref))
    host.gitlab.submit(RunSpec(repo=GITLAB_REPO, workflow="ci", jobs=(a_job("data"),), ref=ref))
    sha = host.github.world.run(run).head_sha
    await until(lambda: len(host.supervisors()) == 2 and running(host) == 2, timeout_s=30)

    lose_the_machines(host)
    check_runs, notes = host.github.world.checks, host.gitlab.world.merge_requests
    await until(lambda: check_runs.everything() and notes.everything(), timeout_s=40)

    def at_github() -> list[Any]:
        token = host.secrets["github-token"]
        client = github.Github(auth=github.Auth.Token(token), base_url=host.urls["github"], retry=None)
        return list(client.get_repo(GITHUB_REPO).get_commit(sha).get_check_runs(filter="all"))

    def at_gitlab() -> list[Any]:
        client = gitlab.Gitlab(host.urls["gitlab"], private_token=host.secrets["gitlab-token"])
        return list(client.projects.get(GITLAB_REPO).mergerequests.get(4).notes.list(get_all=True))

    ours = [one for one in await asyncio.to_thread(at_github) if one.app.slug != "github-actions"]
    (shown,) = ours
    assert (shown.conclusion, shown.name) == ("neutral", "Runner interrupted: build (x86, `fast`)")
    assert "infrastructure, not your test" in shown.output.summary
    assert "(`m`, zone `z`" in shown.output.summary
    assert "**Attempt**: 1 of 3" in shown.output.summary
    (note,) = await asyncio.to_thread(at_gitlab)
    assert "The machine that ran `build (x86, 'fast')`" in note.body
    assert "it is queued again at once" in note.body

    async def is_on_record() -> bool:
        ledger = await host.daemons[0].api("ledger?limit=200")
        return [line["outcome"] for line in ledger["ledger"] if line["action"] == "tell"] == ["told", "told"]

    await until(is_on_record)


def running(host: Site) -> int:
    jobs = [job for run in host.github.world.runs.values() for job in run.jobs.values()]
    statuses = [str(outcome.status) for outcome in host.gitlab.world.outcomes()]
    return sum(job.status == "in_progress" for job in jobs) + statuses.count("running")
