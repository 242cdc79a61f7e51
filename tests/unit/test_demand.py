"""Which pool serves a job: globs, exclusions, labels, the most specific pool, and the sentence when none does."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.demand import Match, NearestPool, asked_labels, match_pool, nearest_pool, repo_specificity
from autoscaler.model import Pool
from autoscaler.spi import ForgeName, PoolName, label_set
from tests.admin_world import GITHUB, pool

SMALL = pool(PoolName("small"), "linux", "x64")
LARGE = pool(PoolName("large"), "linux", "x64", "large")


def match(*labels: str, pools: Sequence[Pool] = (SMALL, LARGE), repo: str = "acme/shop", **more: Any) -> Match:
    asked = {"forge": GITHUB, "repo": repo, "labels": label_set(labels), "run_id": "77", "pools": pools, **more}
    return match_pool(**asked)


@pytest.mark.parametrize(
    ("repo", "patterns", "serves"),
    [
        ("acme/shop", (), True),
        ("acme/shop", ("*",), True),
        ("acme/shop", ("acme/*",), True),
        ("Acme/Shop", ("acme/shop",), True),
        ("acme/shop", ("ACME/*",), True),
        ("tools/deep/er", ("tools/*",), True),
        ("other/shop", ("acme/*",), False),
        ("acme/secret", ("acme/*", "!acme/secret"), False),
        ("acme/secret", ("!acme/secret", "acme/*"), False),
        ("acme/shop", ("!acme/secret",), True),
        ("acme/secret", ("!acme/secret",), False),
    ],
)
def test_a_repo_is_served_by_its_globs(repo: str, patterns: tuple[str, ...], serves: bool) -> None:
    assert (repo_specificity(repo, patterns) is not None) is serves


def test_a_longer_name_is_more_specific_than_a_glob() -> None:
    exact = repo_specificity("acme/shop", ("acme/shop",))
    glob = repo_specificity("acme/shop", ("acme/*",))
    everything = repo_specificity("acme/shop", ("*",))
    assert exact is not None
    assert glob is not None
    assert everything is not None
    assert exact > glob > everything


def test_the_pool_with_the_fewest_spare_labels_serves_a_job() -> None:
    assert match("linux").pool == "small"
    assert match("linux", "large").pool == "large"


def test_among_equal_labels_the_closest_repo_pattern_wins() -> None:
    anything = pool(PoolName("anything"), "linux", repos=("acme/*",), priority=9)
    shop = pool(PoolName("shop"), "linux", repos=("acme/shop",))
    assert match("linux", pools=(anything, shop)).pool == "shop"
    assert match("linux", pools=(anything, shop), repo="acme/web").pool == "anything"


def test_then_priority_and_then_the_name_decide() -> None:
    low, high = pool(PoolName("a"), "linux"), pool(PoolName("z"), "linux", priority=1)
    assert match("linux", pools=(low, high)).pool == "z"
    assert match("linux", pools=(pool(PoolName("b"), "linux"), low)).pool == "a"


def test_self_hosted_and_the_runs_own_label_need_no_configuration() -> None:
    assert match("self-hosted", "linux", "run-77").pool == "small"
    assert asked_labels(label_set(["self-hosted", "run-77", "linux"]), run_id="77") == ("linux",)


def test_another_runs_label_is_a_label_like_any_other() -> None:
    found = match("linux", "run-78")
    assert found.pool is None
    assert "run-78" in found.reason


def test_a_pool_serves_only_its_forges() -> None:
    assert match("linux", forge=ForgeName("gitlab")).pool is None
    everywhere = pool(PoolName("everywhere"), "linux", forges=frozenset())
    assert match("linux", forge=ForgeName("gitlab"), pools=(everywhere,)).pool == "everywhere"


@pytest.mark.parametrize("label", ["ubuntu-latest", "ubuntu-24.04", "windows-2025", "macos-15-large"])
def test_a_job_of_the_forges_own_machines_is_not_ours(label: str) -> None:
    found = match(label)
    assert found.pool is None
    assert found.is_hosted


def test_a_pool_may_list_a_hosted_label_for_itself() -> None:
    ours = pool(PoolName("ours"), "ubuntu-latest")
    assert match("ubuntu-latest", pools=(ours,)).pool == "ours"


@pytest.mark.parametrize("labels", [("self-hosted", "ubuntu-latest"), ("ubuntu-latest", "gpu"), ("gpu",), ()])
def test_a_job_that_asks_for_more_than_hosted_labels_is_ours_to_explain(labels: tuple[str, ...]) -> None:
    assert not match(*labels, pools=(SMALL,)).is_hosted


def test_the_nearest_pool_and_what_it_lacks_are_named() -> None:
    found = match("linux", "large", "gpu")
    assert found.reason == "no pool that serves acme/shop has the label gpu (pool large is nearest)"


def test_a_pool_that_has_the_labels_but_does_not_serve_the_repo_is_named_too() -> None:
    small = pool(PoolName("linux-small"), "linux", "x64", repos=("acme/*",))
    large = pool(PoolName("linux-large"), "linux", "x64", "large", "fast", repos=("acme/monolith",))
    asked: dict[str, Any] = {"repo": "acme/api", "pools": (large, small)}
    assert match("large", "linux", "self-hosted", "x64", **asked).reason == (
        "no pool that serves acme/api has the label large "
        "(pool linux-small is nearest; pool linux-large has it but does not serve acme/api)"
    )
    near = nearest_pool(
        forge=GITHUB,
        repo="acme/api",
        labels=label_set(["large", "linux", "self-hosted"]),
        run_id="77",
        pools=(large, small),
    )
    assert near == NearestPool(pool=small.name, missing=("large",), is_repo_served=True, elsewhere=large.name), (
        "what the status page names is what the reason names"
    )
    assert "pool linux-large has them but does not serve acme/api" in match("fast", "large", "linux", **asked).reason


def test_a_repo_that_no_pool_serves_is_named() -> None:
    assert match("linux", repo="acme/secret").reason == "no pool serves acme/secret"


LABELS = st.frozensets(st.sampled_from("abcde"), max_size=4)


@given(wanted=LABELS, offered=st.lists(LABELS, max_size=4), order=st.randoms(use_true_random=False))
def test_a_match_has_every_label_and_does_not_depend_on_order(
    wanted: frozenset[str], offered: list[frozenset[str]], order: Any
) -> None:
    pools = [pool(PoolName(f"p{number}"), *labels) for number, labels in enumerate(offered)]
    found = match(*wanted, pools=pools)
    shuffled = list(pools)
    order.shuffle(shuffled)
    assert match(*wanted, pools=shuffled) == found
    fitting = [one for one in pools if wanted <= set(one.labels)]
    if not fitting:
        assert found.pool is None
        assert found.reason
    else:
        chosen = next(one for one in pools if one.name == found.pool)
        assert chosen in fitting
        assert len(chosen.labels) == min(len(one.labels) for one in fitting)
