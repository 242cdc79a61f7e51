"""What holds for every test. In CI (the environment variable CI) nothing that CI must check may be skipped."""

import logging
import os
import signal
from collections.abc import Generator

import pytest
import structlog

_MAY_SKIP_IN_CI = ("../shared is absent", "got empty parameter set", "this forge", "this provider")
"""The reference material is not part of the repository (.ci/run sees to it that its tests run where it is), and a
contract suite skips what an adapter cannot do. Every other reason to skip is a tool that CI installs."""


# A test run that was started in the background ignores SIGINT, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not any(allowed in reason for allowed in _MAY_SKIP_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A test that runs a command in this process makes it log to streams that end with the test."""
    root = logging.getLogger()
    was_configured, before, handlers, level = (
        structlog.is_configured(),
        structlog.get_config(),
        root.handlers[:],
        root.level,
    )
    try:
        return (yield)
    finally:
        structlog.reset_defaults()
        if was_configured:
            structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)
