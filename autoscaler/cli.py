"""The `autoscaler` command: run, demo, check, plan, and the clients of the admin API.

Exit codes: 0 done, 2 usage or configuration, 3 refused by a check, 1 anything else. With --json one document goes to
stdout; logs go to stderr. Each command imports what it needs, so that `--help` is quick.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DONE, FAILED, USAGE, REFUSED = 0, 1, 2, 3

Command = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = make_parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def make_parser() -> argparse.ArgumentParser:
    """Every command and its options; the chosen one's function is `command`."""
    parser = argparse.ArgumentParser(prog="autoscaler", description="Ephemeral CI runners for GitHub and GitLab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="the daemon")
    _config_option(run)
    run.set_defaults(command=_run)

    demo = commands.add_parser("demo", help="forges, machines and jobs on this host: see it work in a minute")
    _demo_options(demo)
    demo.set_defaults(command=_demo)

    check = commands.add_parser("check", help="validate the configuration")
    _config_option(check)
    check.add_argument("--online", action="store_true", help="also try credentials, permissions and listings")
    _json_option(check)
    check.set_defaults(command=_check)

    plan = commands.add_parser("plan", help="what would be done now, and why; changes nothing")
    _config_option(plan)
    _json_option(plan)
    plan.set_defaults(command=_plan)

    status = commands.add_parser("status", help="jobs and instances by pool, from a running daemon")
    _client_options(status)
    status.set_defaults(command=_client("status"))
    why = commands.add_parser("why", help="why a job waits and when it starts, or who ended a machine")
    why.add_argument(
        "job", metavar="JOB", help="a job's id (ours or its forge's) or address, repo/run, or a machine's id"
    )
    _client_options(why)
    why.set_defaults(command=_client("why"))
    for verb, text in (
        ("drain", "launch nothing more for a pool and let its idle machines go"),
        ("pause", "launch nothing more for a pool"),
        ("resume", "let a paused or draining pool launch again"),
    ):
        control = commands.add_parser(verb, help=text)
        control.add_argument("pool", metavar="POOL")
        _client_options(control)
        control.set_defaults(command=_client(verb))
    _chaos_options(commands.add_parser("chaos", help="game days: see what a reclaim costs before a cloud shows it"))
    return parser


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, metavar="FILE")


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")


def _client_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=os.environ.get("AUTOSCALER_URL", "http://127.0.0.1:9480"),
        help="the admin listener (default: $AUTOSCALER_URL, else %(default)s)",
    )
    parser.add_argument("--token", default=None, help="admin token; better in $AUTOSCALER_TOKEN")
    _json_option(parser)


def _chaos_options(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    interrupt = verbs.add_parser("interrupt", help="have machines with jobs on them taken, and tell what it cost")
    interrupt.add_argument("--pool", required=True, metavar="POOL")
    interrupt.add_argument(
        "--share", type=_share, required=True, metavar="X", help="share of the pool's machines with a runner, up to 1"
    )
    interrupt.add_argument("--no-notice", action="store_true", help="end them without the warning of their cloud")
    interrupt.add_argument(
        "--wait", type=float, default=900.0, metavar="S", help="tell what it cost by then at the latest (default 900)"
    )
    _client_options(interrupt)
    interrupt.set_defaults(command=_client("chaos"))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0 and at most 1; 0.1 is a tenth")
    return share


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--provider",
        choices=("local", "aws", "gce"),
        default="local",
        help="where machines come from: this host, or a sandbox cloud (default local)",
    )
    parser.add_argument(
        "--world",
        type=Path,
        default=None,
        metavar="FILE",
        help="with a cloud: its capacity pools, traces, boots and notices, in the format of simulations",
    )
    parser.add_argument("--duration", type=float, default=60.0, metavar="S", help="seconds of new jobs (default 60)")
    parser.add_argument(
        "--faults",
        default="",
        metavar="NAME=VALUE,...",
        help="crash (kill -9 per minute), lost_webhook, forge_error, slow_boot, reclaim, no_notice, refuse (shares); "
        "with a cloud also throttle, lost_answer",
    )
    parser.add_argument(
        "--jobs", type=Path, default=None, metavar="TRACE", help="replay a job trace (CSV, gzip allowed)"
    )
    parser.add_argument(
        "--speed", type=float, default=None, metavar="X", help="how much faster than the trace or the world file says"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--store", default="", metavar="URL", help="the daemon's store (default: a new SQLite file)")
    parser.add_argument("--keep", type=Path, default=None, metavar="DIR", help="keep logs and store in this folder")
    _json_option(parser)


def _run(options: argparse.Namespace) -> int:
    from autoscaler.config import ConfigError
    from autoscaler.daemon import run_daemon
    from autoscaler.store import StoreError

    try:
        asyncio.run(run_daemon(options.config))
    except ConfigError as error:
        _complain(str(error))
        return USAGE
    except (StoreError, OSError) as error:
        _complain(f"autoscaler: {error}")
        return FAILED
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from autoscaler.sandbox.demo import run_demo
    from autoscaler.sandbox.demo_options import DemoError, DemoOptions

    try:
        return asyncio.run(run_demo(DemoOptions.of(options)))
    except DemoError as error:
        _complain(f"autoscaler demo: {error}")
        return USAGE


def _check(options: argparse.Namespace) -> int:
    from autoscaler import logs
    from autoscaler.check import check

    logs.configure(level="warning")
    report = asyncio.run(check(options.config, online=options.online))
    print(json.dumps(report.document(), indent=2) if options.json else report.text())
    return report.exit_code


def _plan(options: argparse.Namespace) -> int:
    from autoscaler.config import ConfigError
    from autoscaler.dry_run import dry_run
    from autoscaler.store import StoreError

    try:
        document, text = asyncio.run(dry_run(options.config))
    except ConfigError as error:
        _complain(str(error))
        return USAGE
    except StoreError as error:
        _complain(f"autoscaler: {error}")
        return FAILED
    print(json.dumps(document, indent=2) if options.json else text)
    return DONE


def _client(verb: str) -> Command:
    def call(options: argparse.Namespace) -> int:
        from autoscaler.client import ask

        return asyncio.run(ask(verb, options))

    return call


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
