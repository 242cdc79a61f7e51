"""Measures the daemon against the numbers it promises, each beside a baseline of the same run.

    make bench                           everything, about four minutes
    python -m benchmarks plan --quick    one of them, smaller

Ratios are the figures: absolute times say more about the machine and its other work. Nothing here is a test; a missed
target is a line in the table, and no exit code.
"""
