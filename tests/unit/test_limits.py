"""What strangers may use up: addresses behind proxies, token buckets, refusals in the log, connections."""

import resource

import pytest
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from autoscaler.http.limits import (
    PER_CALLER,
    REMEMBERED_KEYS,
    BodyBudget,
    Bucket,
    Buckets,
    ConnectionLimits,
    HelloLimits,
    Refusals,
    address_key,
    networks,
    peer_address,
    raise_file_limit,
)
from autoscaler.metrics import Metrics

PROXIES = networks(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "asks"),
    [
        ("203.0.113.7", "198.51.100.1", "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1, 198.51.100.2", "198.51.100.2"),
        ("10.0.0.1", "198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "127.0.0.1, 198.51.100.2", "198.51.100.2"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("fd00::1", "[2001:db8::5]:4711", "2001:db8::5"),
        ("::ffff:10.0.0.1", "198.51.100.1:99", "198.51.100.1"),
    ],
)
def test_only_trusted_proxies_are_believed_about_addresses(peer: str, forwarded: str, asks: str) -> None:
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": forwarded}).clone(remote=peer)
    assert peer_address(request, PROXIES) == asks


def test_without_trusted_proxies_nobody_is_believed() -> None:
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": "127.0.0.1"}).clone(remote="10.0.0.1")
    assert peer_address(request) == "10.0.0.1"


def test_an_ipv6_customer_counts_as_one() -> None:
    assert address_key("2001:db8:0:7::1") == address_key("2001:db8:0:7:ffff::2") != address_key("2001:db8:0:8::1")
    assert address_key("::ffff:203.0.113.7") == address_key("203.0.113.7") != address_key("203.0.113.8")


def test_a_bucket_fills_with_time_up_to_its_burst() -> None:
    bucket = Bucket.full(5.0, 2.0, 0.0)
    assert [bucket.spend(0.0) for _ in range(3)] == [True, True, False]
    assert bucket.wait_s == pytest.approx(0.2)
    assert bucket.spend(0.2)
    assert [bucket.spend(100.0) for _ in range(3)] == [True, True, False]


def test_buckets_forget_the_key_used_longest_ago() -> None:
    buckets = Buckets(1.0, 1.0)
    assert buckets.bucket("first", 0.0).spend(0.0)
    for number in range(REMEMBERED_KEYS):
        buckets.bucket(str(number), 0.0)
    assert len(buckets) == REMEMBERED_KEYS
    assert buckets.bucket("first", 0.0).spend(0.0)


def test_hellos_are_limited_by_address_and_loopback_less() -> None:
    hellos = HelloLimits()
    assert [hellos.wait_s("203.0.113.7", 0.0) > 0 for _ in range(501)] == [False] * 500 + [True]
    assert hellos.wait_s("203.0.113.8", 0.0) == 0
    assert [hellos.wait_s("127.0.0.1", 0.0) > 0 for _ in range(201)] == [False] * 200 + [True]


def flooded(now: float) -> HelloLimits:
    """After refused hellos of three addresses, more than there is room for."""
    hellos = HelloLimits()
    for number in range(1002):
        hellos.refused(f"203.0.113.{number % 3}", now)
    return hellos


def test_too_many_refused_hellos_of_all_addresses_hold_up_those_addresses_for_a_moment() -> None:
    now = 1e9  # later than any monotonic clock
    hellos = flooded(now)
    assert all(hellos.wait_s(f"203.0.113.{number}", now) > 0 for number in range(3))
    assert hellos.wait_s("203.0.113.1", now + 1) == 0


def test_refused_hellos_of_others_hold_up_nobody_who_had_none_lately() -> None:
    now = 1e9
    hellos = flooded(now)
    assert hellos.wait_s("198.51.100.1", now) == 0
    for _ in range(7000):
        hellos.refused("203.0.113.1", now + 60)
    assert hellos.wait_s("203.0.113.1", now + 60) > 0
    assert hellos.wait_s("203.0.113.2", now + 60) == 0, "its last refused hello was a minute ago"


def test_refused_hellos_are_remembered_of_so_many_addresses_only() -> None:
    hellos = HelloLimits()
    for number in range(REMEMBERED_KEYS + 10):
        hellos.refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1e9)
    assert len(hellos._suspects) == REMEMBERED_KEYS


def test_refusals_are_all_counted_and_said_once_a_minute() -> None:
    metrics = Metrics()
    refusals = Refusals(metrics.agent_calls_total)
    with capture_logs() as lines:
        for _ in range(5):
            refusals.count("hello", "rate", 0.0, address="x" * 1000)
        refusals.count("hello", "rate", 61.0)
    assert [line["not_said_before"] for line in lines] == [0, 4]
    assert len(lines[0]["address"]) == 200
    assert b'autoscaler_agent_calls_total{call="hello",outcome="rate"} 6.0' in metrics.render()


def test_the_budget_of_bodies_is_one_for_all() -> None:
    budget = BodyBudget(10)
    assert budget.take(6)
    assert not budget.take(5)
    budget.give_back(6)
    assert budget.take(10)


def test_connections_are_limited_by_address_but_not_for_loopback_and_proxies() -> None:
    limits = ConnectionLimits(total=10, per_address=2, trusted=PROXIES)
    assert [limits.admit("203.0.113.7") for _ in range(3)] == [True, True, False]
    assert all(limits.admit("127.0.0.1") for _ in range(4))
    assert [limits.admit("10.0.0.1") for _ in range(5)] == [True] * 4 + [False]
    for peer in ("203.0.113.7", "10.0.0.1"):
        limits.leave(peer)
    assert limits.open == 8
    assert limits.admit("203.0.113.7")


def test_a_thousand_agents_behind_one_address_are_admitted_and_strangers_have_a_bound() -> None:
    limits = ConnectionLimits(total=10_000)
    assert all(limits.admit("203.0.113.7") for _ in range(1000)), "all boot at once"
    assert [limits.admit("203.0.113.7") for _ in range(25)] == [True] * 24 + [False]
    assert all(limits.know("203.0.113.7", f"machine-{number}") for number in range(1000))
    assert all(limits.admit("203.0.113.7") for _ in range(1000)), "those who waited hold no place any more"
    assert limits.open == 2024


def test_one_machine_takes_a_few_connections_out_of_its_address_only() -> None:
    limits = ConnectionLimits(total=100, per_address=20)
    assert all(limits.admit("203.0.113.7") for _ in range(20))
    known = [limits.know("203.0.113.7", "machine") for _ in range(20)]
    assert known == [True] * PER_CALLER + [False] * (20 - PER_CALLER)
    for is_known in known:
        limits.leave("203.0.113.7", "machine" if is_known else "")
    assert (limits.open, limits.by_address, limits.by_caller) == (0, {}, {})


def test_the_limit_of_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        assert raise_file_limit(512) == 512
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
