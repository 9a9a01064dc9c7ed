"""Programs a second that the code reward runs in its sandbox.

python benchmarks/sandbox.py [--programs 200]
"""

import argparse
import os
import statistics
import time

from lorasmith.rewards.sandbox import Limits, protection, run_all

PROGRAM = ("def plus(a, b):\n    return a + b", "assert plus(2, 3) == 5")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="a round")
    programs = [PROGRAM] * parser.parse_args().programs
    print(f"protection: {protection()}, {os.cpu_count()} cores")
    for workers in (1, os.cpu_count() or 1):
        rates = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            assert all(outcome.passed for outcome in run_all(programs, Limits(seconds=30.0), workers))
            rates.append(len(programs) / (time.perf_counter() - started))
        print(f"{workers} at a time: {statistics.median(rates):.0f} programs/s, {min(rates):.0f} to {max(rates):.0f}")


if __name__ == "__main__":
    main()
