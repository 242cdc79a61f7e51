"""Many seeds, on every core: `python -m tests.sim.run --seeds 1000 --start 0`. Exit code 1 when one fails.

Prints a line a minute at most, and the whole report of the first seeds that fail.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from autoscaler.simulate.seeds import Outcome, run_seed

REPORTS = 3
EVERY_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    chosen = parser.parse_args(arguments)
    started, told = time.monotonic(), time.monotonic()
    failed: list[Outcome] = []
    virtual_s = done = 0.0
    with ProcessPoolExecutor(chosen.jobs) as pool:
        pending = [pool.submit(run_seed, seed) for seed in range(chosen.start, chosen.start + chosen.seeds)]
        for future in as_completed(pending):
            outcome = future.result()
            done += 1
            virtual_s += outcome.ended_at_s
            if outcome.violations:
                failed.append(outcome)
                first = f"seed {outcome.seed}: {outcome.violations[0].strip()}"
                print(outcome.report() if len(failed) <= REPORTS else first, flush=True)
            if time.monotonic() - told > EVERY_S:
                told = time.monotonic()
                print(f"{done:.0f} of {chosen.seeds} seeds, {len(failed)} failed", file=sys.stderr, flush=True)
    took_s = time.monotonic() - started
    rate = virtual_s / max(took_s, 0.001)
    hours = virtual_s / 3600
    print(f"{done:.0f} seeds in {took_s:.0f} s, {hours:.0f} simulated hours ({rate:.0f}x), {len(failed)} failed")
    if failed:
        print("failed seeds:", *sorted(str(outcome.seed) for outcome in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
