"""`python -m benchmarks [NAME...] [--json] [--quick]`."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable

from benchmarks import fleets, latency, life, plan, predictions, recovery, webhooks
from benchmarks.figures import Figure, as_json, table

BENCHMARKS: dict[str, Callable[..., Awaitable[list[Figure]]]] = {
    "plan": plan.run,
    "predictions": predictions.run,
    "webhooks": webhooks.run,
    "latency": latency.run,
    "life": life.run,
    "recovery": recovery.run,
    "fleets-aws": fleets.run_aws,
    "fleets-gce": fleets.run_gce,
}


def _chosen(names: list[str]) -> list[str]:
    """Of the benchmarks, those named: "fleets" is "fleets-aws" and "fleets-gce"."""
    return [one for one in BENCHMARKS if not names or one in names or one.partition("-")[0] in names]


async def _run(names: list[str], *, is_quick: bool) -> list[Figure]:
    figures: list[Figure] = []
    for name in names:
        print(f"{name}: {BENCHMARKS[name].__doc__}", file=sys.stderr, flush=True)
        figures += await BENCHMARKS[name](is_quick=is_quick)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against the baselines.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--quick", action="store_true", help="a fifth of the size: the targets mean less")
    options = parser.parse_args()
    if unknown := [name for name in options.names if not _chosen([name])]:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    figures = asyncio.run(_run(_chosen(options.names), is_quick=options.quick))
    print(as_json(figures) if options.json else f"\n{table(figures)}")


if __name__ == "__main__":
    main()
