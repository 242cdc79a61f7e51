"""The GitHub section of the configuration, with every key wrong in turn, and the limits known before any answer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from autoscaler.calls import Calls
from autoscaler.clock import SystemClock
from autoscaler.sandbox.github_auth import AppIdentity
from autoscaler.spi import ForgeName, ForgeSettings, RateLimited, Scope, Secret, SettingsError, Surroundings
from runners.github import GitHubForge, create
from runners.github_budgets import Budgets
from runners.github_errors import Answer, Purpose
from runners.github_settings import api_url_of

READ = Purpose(does="read", permission="Reading: read")
KEY = AppIdentity.generate()[1]
BROKEN_KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEsecretpart\n-----END RSA PRIVATE KEY-----"


def settings(**changed: Any) -> ForgeSettings:
    given: dict[str, Any] = {
        "name": ForgeName("gh"),
        "kind": "github",
        "url": "https://github.com",
        "api_url": "",
        "credentials": {"token": Secret("t")},
        "webhook_secrets": (Secret("s"),),
        "scopes": (Scope("acme"),),
        "poll": timedelta(seconds=30),
        "options": {},
    }
    return ForgeSettings(**(given | changed))


def made(**changed: Any) -> GitHubForge:
    surroundings = Surroundings(deployment="d", runner_prefix="d-", clock=SystemClock(), gates=Calls())
    return create(settings(**changed), surroundings)


@pytest.mark.parametrize(
    ("url", "api_url"),
    [
        ("", "https://api.github.com"),
        ("https://github.com", "https://api.github.com"),
        ("https://github.com/", "https://api.github.com"),
        ("https://acme.ghe.com", "https://api.acme.ghe.com"),
        ("https://git.example.org", "https://git.example.org/api/v3"),
        ("https://git.example.org:8443/", "https://git.example.org:8443/api/v3"),
    ],
)
def test_api_url_is_derived_from_the_forges_url(url: str, api_url: str) -> None:
    assert api_url_of(settings(url=url)) == api_url


def test_given_api_url_wins() -> None:
    assert api_url_of(settings(api_url="http://127.0.0.1:8080/api/v3/")) == "http://127.0.0.1:8080/api/v3"


def test_app_and_token_are_both_accepted() -> None:
    app = {"app_id": "1", "private_key": Secret(KEY), "installation_id": "7"}

    assert made(credentials=app).name == made(credentials={"token": Secret("t")}).name == "gh"


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"credentials": {}}, "credentials"),
        ({"credentials": {"token": Secret(" ")}}, "credentials.token"),
        ({"credentials": {"token": Secret("t"), "app_id": "1"}}, "credentials.app_id"),
        ({"credentials": {"tokn": Secret("t")}}, "credentials.tokn"),
        ({"credentials": {"app_id": "1"}}, "credentials.private_key"),
        ({"credentials": {"private_key": Secret(KEY)}}, "credentials.app_id"),
        ({"credentials": {"app_id": "", "private_key": Secret(KEY)}}, "credentials.app_id"),
        ({"credentials": {"app_id": "1", "private_key": Secret("/etc/key.pem")}}, "credentials.private_key"),
        ({"credentials": {"app_id": "1", "private_key": Secret(BROKEN_KEY)}}, "credentials.private_key"),
        (
            {"credentials": {"app_id": "1", "private_key": Secret(KEY), "installation_id": "x"}},
            "credentials.installation_id",
        ),
        ({"url": "github.com"}, "url"),
        ({"url": "https://user:pass@github.com"}, "url"),
        ({"api_url": "ftp://x"}, "api_url"),
        ({"api_url": "https://x/?a=1"}, "api_url"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": (Scope("acme"), Scope("a/b/c"))}, "scopes[1]"),
        ({"scopes": (Scope("acme/"),)}, "scopes[0]"),
        ({"scopes": (Scope("acme/*"),)}, "scopes[0]"),
        ({"scopes": (Scope("https://github.com/acme"),)}, "scopes[0]"),
        ({"options": {"runner_groop": "x"}}, "runner_groop"),
        ({"options": {"runner_group": 7}}, "runner_group"),
        ({"options": {"hook_id": "x"}}, "hook_id"),
    ],
)
def test_wrong_setting_names_its_key_and_shows_no_secret(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        made(**changed)

    assert refused.value.key == key
    assert "secretpart" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


# ---------------------------------------------------------------------- budgets


class HandClock:
    """A clock that stands still until moved."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("budgets never wait")


def answer(status: int = 200, /, **headers: str) -> Answer:
    return Answer(status=status, headers={k.replace("_", "-"): v for k, v in headers.items()}, body=b"{}")


def test_pauses_double_while_github_gives_no_time() -> None:
    clock = HandClock()
    budgets = Budgets(clock)
    limited = answer(429)
    pauses = []
    for _ in range(6):
        refused = budgets.learn("a", limited, READ)
        assert refused is not None
        pauses.append(refused.retry_after_s)
        clock.seconds += refused.retry_after_s
    budgets.learn("a", answer(), READ)
    afterwards = budgets.learn("a", limited, READ)

    assert pauses == [60, 120, 240, 480, 900, 900]
    assert afterwards is not None
    assert afterwards.retry_after_s == 60


def test_one_accounts_limit_does_not_stop_another() -> None:
    budgets = Budgets(HandClock())
    budgets.learn("a", answer(429), READ)

    with pytest.raises(RateLimited):
        budgets.admit("a", READ)
    budgets.admit("b", READ)


def test_other_resources_headers_say_nothing_about_the_core_budget() -> None:
    budgets = Budgets(HandClock())
    spent = {"x_ratelimit_limit": "30", "x_ratelimit_remaining": "0", "x_ratelimit_reset": "1000060"}
    budgets.learn("a", answer(**spent, x_ratelimit_resource="search"), READ)

    budgets.admit("a", READ)


def test_spent_budget_is_whole_again_after_its_reset() -> None:
    clock = HandClock()
    budgets = Budgets(clock)
    budgets.learn("a", answer(x_ratelimit_limit="5000", x_ratelimit_remaining="0", x_ratelimit_reset="1000300"), READ)
    with pytest.raises(RateLimited) as refused:
        budgets.admit("a", READ)
    clock.seconds += refused.value.retry_after_s

    budgets.admit("a", READ)

    assert refused.value.retry_after_s == 300
    assert {budget.family: budget.remaining for budget in budgets.listed()}["core"] == 5000


def test_tightest_account_speaks_for_the_forge() -> None:
    budgets = Budgets(HandClock())
    for account, remaining in (("a", "4000"), ("b", "100")):
        budgets.learn(
            account,
            answer(x_ratelimit_limit="5000", x_ratelimit_remaining=remaining, x_ratelimit_reset="1000300"),
            READ,
        )

    assert {budget.family: budget.remaining for budget in budgets.listed()}["core"] == 100


def test_sweeps_never_spend_the_reserve_before_the_reset() -> None:
    clock = HandClock()
    budgets = Budgets(clock)
    remaining, polls = 5000.0, 0
    while clock.seconds < 1_003_600:
        budgets.learn(
            "a",
            answer(x_ratelimit_limit="5000", x_ratelimit_remaining=str(int(remaining)), x_ratelimit_reset="1003600"),
            READ,
        )
        remaining -= budgets.spendable("a", 5)
        clock.seconds += 5
        polls += 1

    assert polls == 720
    assert 480 <= remaining < 2500
