"""What the demo prints while it runs: plain lines or a live region, and never somebody else's escape codes."""

import io

import pytest

from autoscaler.sandbox.demo_progress import Screen


class Terminal(io.StringIO):
    """A terminal that remembers every byte."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_region_is_drawn_anew_below_the_lines_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    out = Terminal()
    screen = Screen(out)
    screen.draw(["one", "two"])
    screen.draw(["three"])
    screen.say("it stays")
    screen.draw(["four"])
    assert screen.is_live
    assert out.getvalue() == "one\ntwo\n\x1b[2A\r\x1b[Jthree\n\x1b[1A\r\x1b[Jit stays\nfour\n"


def test_the_region_never_grows_beyond_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "10")
    out = Terminal()
    Screen(out).draw(["x" * 200] * 50)
    lines = out.getvalue().splitlines()
    assert len(lines) == 9
    assert {len(line) for line in lines} == {39}


def test_names_of_others_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    screen = Screen(out)
    screen.say("nobody serves \x1b]0;owned\x07build of acme/shop")
    assert not screen.is_live
    assert out.getvalue() == "nobody serves ?]0;owned?build of acme/shop\n"
