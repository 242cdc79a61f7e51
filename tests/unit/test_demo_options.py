"""Options of the demo: faults are named or refused with the names there are."""

import pytest

from autoscaler.cli import main
from autoscaler.sandbox.demo_options import CLOUD_FAULTS, FAULTS, DemoError, parse_faults


def test_faults_are_read_by_name() -> None:
    assert parse_faults("crash=6, lost_webhook=0.2,forge_error=.1") == {
        "crash": 6.0,
        "lost_webhook": 0.2,
        "forge_error": 0.1,
    }
    assert parse_faults("") == {}


@pytest.mark.parametrize(
    "text",
    ["crash", "crash=", "crash=often", "crash=-1", "crash=nan", "crash=inf", "lost_webhook=1.5", "slow_boot=20%", "=1"],
)
def test_a_malformed_fault_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(DemoError) as refused:
        parse_faults(text)
    assert "crash" in str(refused.value) or "from 0 to 1" in str(refused.value)


def test_an_unknown_fault_is_refused_with_every_name_there_is() -> None:
    with pytest.raises(DemoError) as refused:
        parse_faults("earthquake=1")
    for name in (*FAULTS, *CLOUD_FAULTS):
        assert name in str(refused.value)


@pytest.mark.parametrize("name", CLOUD_FAULTS)
def test_a_fault_of_clouds_says_that_it_needs_one(name: str) -> None:
    with pytest.raises(DemoError, match="cloud"):
        parse_faults(f"{name}=0.5")


def test_a_fault_given_twice_is_refused() -> None:
    with pytest.raises(DemoError, match="twice"):
        parse_faults("crash=1,crash=2")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--faults", "earthquake=1"],
        ["--duration", "0"],
        ["--duration", "nan"],
        ["--speed", "-1", "--jobs", "trace.csv"],
        ["--speed", "10"],
        ["--store", "mysql://x"],
        ["--jobs", "/nonexistent/trace.csv"],
        ["--world", "world.toml"],
        ["--world", "world.toml", "--provider", "local"],
        ["--world", "/nonexistent/world.toml", "--provider", "aws"],
    ],
)
def test_wrong_options_end_with_code_2_and_one_line_on_stderr(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("autoscaler demo: ")
