"""Log lines are for machines by default, and hold no secret whatever somebody logs."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from autoscaler import logs
from autoscaler.spi import Secret


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_event_is_one_json_line_with_its_keys() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)

    structlog.get_logger("any").info("instance_launched", instance="i-1", pool="linux")

    [line] = lines(stream)
    assert line["event"] == "instance_launched"
    assert line["instance"] == "i-1"
    assert line["level"] == "info"
    assert str(line["timestamp"]).endswith("Z")


def test_levels_below_the_threshold_are_dropped() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, level="warning")

    structlog.get_logger().info("tick_done")
    structlog.get_logger().warning("tick_late")

    assert [line["event"] for line in lines(stream)] == ["tick_late"]


def test_standard_library_loggers_take_the_same_way() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, secrets=[Secret("super-secret-value")])

    logging.getLogger("aiohttp.server").warning("odd request with %s", "super-secret-value")

    [line] = lines(stream)
    assert line["logger"] == "aiohttp.server"
    assert line["event"] == "odd request with ***"


def test_pretty_output_is_for_people() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, pretty=True)

    structlog.get_logger().info("instance_launched", pool="linux")

    assert "instance_launched" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


@pytest.mark.parametrize(
    "secret",
    [
        "ghp_" + "a1" * 18,
        "github_pat_" + "b2" * 20,
        "ghs_" + "c3" * 18,
        "glpat-" + "d4" * 10,
        "glrt-t1_" + "e5" * 10,
        "whsec_" + "Zm9v" * 8,
        "AKIA" + "A1B2" * 4,
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiIxMjM0In0.c2lnbmF0dXJlc2ln",
        "Bearer abcdefghijkl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----",
        "postgresql://user:geheim@host/db",
        "known-secret-of-ours",
    ],
)
def test_secret_in_any_value_is_scrubbed(secret: str) -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, secrets=[Secret("known-secret-of-ours")])
    core = secret.removeprefix("Bearer ").removeprefix("postgresql://").removesuffix("@host/db")

    structlog.get_logger().error("call_failed", detail=f"got {secret} back", nested={"list": [secret], "n": 1})
    try:
        raise ValueError(secret)
    except ValueError:
        structlog.get_logger().exception("call_broke")

    assert core not in stream.getvalue()
    assert json.dumps(core).strip('"') not in stream.getvalue()
    assert stream.getvalue().count("***") >= 3


def test_keys_named_like_secrets_are_scrubbed() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream)

    structlog.get_logger().info(
        "odd", token="abc", webhook_secret="abc", headers={"Authorization": "abc"}, batch="abc", wrapped=Secret("abc")
    )

    [line] = lines(stream)
    assert (line["token"], line["webhook_secret"], line["headers"]) == ("***", "***", {"Authorization": "***"})
    assert line["batch"] == "abc"
    assert line["wrapped"] == "Secret(***)"


def test_short_known_secret_does_not_blot_out_words() -> None:
    stream = io.StringIO()
    logs.configure(stream=stream, secrets=[Secret("a"), Secret("")])

    structlog.get_logger().info("started", host="alpha")

    assert lines(stream)[0]["host"] == "alpha"


def test_text_of_strangers_cannot_steer_a_terminal() -> None:
    out = io.StringIO()
    logs.configure(stream=out, pretty=True)
    hostile = "\x1b[2J\rall-is-well\nroot\x9b\u202e\udcff"
    structlog.get_logger().warning("call_refused", address=hostile, other="\x1b[2J")
    logging.getLogger("sdk").warning(hostile)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        structlog.get_logger().exception("call_failed")
    text = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert not set(text) & {"\x1b", "\r", "\x9b", "\u202e", "\udcff"}
    assert "\nroot" not in text
    assert "two\nlines" in text
