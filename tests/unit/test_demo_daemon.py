"""Plans of a daemon that was killed and revived are counted from its log."""

from pathlib import Path

from autoscaler.sandbox.demo_daemon import decisions_of


def test_plans_are_counted_over_all_lives_of_the_daemon(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    lines = [
        '{"event": "daemon_prepared"}',
        '{"tick": 1, "plan_ms": 0.5, "event": "tick"}',
        '{"tick": 4, "plan_ms": 2.0, "event": "tick"}',
        '{"tick": 7, "plan_m',
        '{"event": "daemon_prepared"}',
        '{"tick": 2, "plan_ms": 1.0, "event": "tick"}',
        "Traceback (most recent call last):",
        '{"tick": 3, "plan_ms": 1.5, "event": "tick"}',
    ]
    log.write_text("\n".join(lines) + "\n")
    decisions = decisions_of(log)
    assert decisions.plans == 4 + 3
    assert decisions.plan_ms == [0.5, 2.0, 1.0, 1.5]
