"""Settings of the GitLab forge: those that cannot work are named, addresses and scopes mean what they say."""

from typing import Any

import pytest

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.spi import Scope, Secret, SettingsError, Surroundings
from runners.gitlab import create
from tests.contract.gitlab_site import PREFIX, forge_at, gitlab_site, settings


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"credentials": {}}, "credentials.token"),
        ({"credentials": {"token": Secret("")}}, "credentials.token"),
        ({"credentials": {"token": Secret("glpat-x\n")}}, "credentials.token"),
        ({"credentials": {"token": Secret("glrt-abc")}}, "credentials.token"),
        (
            {"credentials": {"token": Secret("glpat-a"), "runner_token": Secret("GR1348941x")}},
            "credentials.runner_token",
        ),
        ({"credentials": {"token": Secret("glpat-a"), "app_id": "5"}}, "credentials.app_id"),
        ({"webhook_secrets": (Secret("whsec_not base64"),)}, "webhook_secret"),
        ({"webhook_secrets": (Secret("whsec_"),)}, "webhook_secret"),
        ({"webhook_secrets": (Secret(""),)}, "webhook_secret"),
        ({"url": "gitlab.example.com"}, "url"),
        ({"url": "ftp://gitlab.example.com"}, "url"),
        ({"url": "https://me:secret@gitlab.example.com"}, "url"),
        ({"api_url": "https://"}, "api_url"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": (Scope("/acme"),)}, "scopes"),
        ({"scopes": (Scope("https://gitlab.example.com/acme"),)}, "scopes"),
    ],
)
async def test_setting_that_cannot_work_is_named(changes: dict[str, Any], key: str) -> None:
    calls = Calls()
    surroundings = Surroundings(deployment="tests", runner_prefix=PREFIX, clock=SystemClock(), gates=calls)
    given = settings(**{"url": "https://gitlab.example.com", **changes})
    with pytest.raises(SettingsError) as refusal:
        create(given, surroundings)
    assert refusal.value.key == key
    for secret in [*given.credentials.values(), *given.webhook_secrets]:
        if isinstance(secret, Secret) and secret.reveal() not in ("", "whsec_"):
            assert secret.reveal() not in str(refusal.value)


@pytest.mark.parametrize("suffix", ["", "/", "/api/v4", "/api/v4/"])
async def test_address_may_name_the_api_or_not(suffix: str) -> None:
    async with gitlab_site() as site:
        _, (job_id,) = site.submit("linux")
        forge = site.forge(url="https://gitlab.example.com", api_url=site.url + suffix)
        assert (await forge.get_job("acme/api", job_id)).name == "job 0"
        made = await forge.register(scope=Scope("acme"), group="", name=f"{PREFIX}1", labels=())
        assert made.parameters["url"] == "https://gitlab.example.com"


async def test_most_specific_scope_wins_by_whole_path_parts() -> None:
    calls = Calls()
    forge = forge_at("https://gitlab.example.com", calls, scopes=tuple(map(Scope, ("acme", "acme/Deep", "solo/app"))))
    assert forge.scope_of("acme/api") == "acme"
    assert forge.scope_of("ACME/deep/er/api") == "acme/Deep"
    assert forge.scope_of("acme/deeper") == "acme"
    assert forge.scope_of("solo/app") == "solo/app"
    assert forge.scope_of("solo/application") is None
    assert forge.scope_of("acmeother/api") is None
