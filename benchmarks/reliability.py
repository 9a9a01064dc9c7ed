"""The scorecard: how a run survives kills, broken checkpoints, full disks, signals and numbers that are none.

    python benchmarks/reliability.py [--rows R1,R2,...] [--sample N] [--seed 0]     # writes benchmarks/reliability.json

Each trial is a real run of scripts/sft.py in a process forked behind the imports, so that it costs a second or two. A
row gives counts; what stock does was measured before on the same library versions (stock, with its figure's source).
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from scorecard.checked import CHECKED
from scorecard.crashes import chaos, kill_nine, r1, r2, r3, r4
from scorecard.guards import cost, hang, r5, r9, r12, r17, r17_evaluation
from scorecard.launchers import r5_launchers, r18
from scorecard.seeded import r21
from scorecard.stock import r1_stock, r2_stock
from scorecard.trial import ROOT, load_script

# What stock transformers, trl and peft do: measured before on the same versions, by other harnesses; the rows that
# end in "stock" measure it with ours.
STOCK = {
    "R1": "3 of 16", "R2": "0 of 12", "R3": "11 of 11 random order, 6 of 11 streaming, 3 of 5 grouped", "R4": "0 of 3",
    "R5 launchers": "0 of 2, 2 orphans", "R6": "0 of 10; 6 silent", "R8": "6e-11; wrapped packing 9.7e-5",
    "R9": "0 of 1, 1 shipped", "R10": "QLoRA top-1 0.62 to 0.85", "R11": "0 of 3", "R12": "1 of 7 warns", "R13": "none", "R14": "none",
    "R15": "1 leak, 1 hang", "R16": "46 s", "R17": "no", "R17 evaluation": "linear", "R18": "none in 150 s; 19 s",
    "R19": "yes",
}  # fmt: skip
ROWS: dict[str, Callable[[Any, int, int], dict[str, Any]]] = {
    "R1": r1, "R1 stock": r1_stock, "R2": r2, "R2 stock": r2_stock, "R3": r3, "R4": r4, "R5": r5, "R5 launchers": r5_launchers, "R9": r9, "R12": r12, "R17": r17,
    "R17 evaluation": r17_evaluation, "R18": r18, "R18 alone": hang, **CHECKED, "R21": r21, "kill": kill_nine,
    "chaos": chaos, "cost": cost,
}  # fmt: skip


def order(name: str) -> tuple[bool, int, str]:
    """Rows in the catalogue's order, those without a number last."""
    number = name.partition(" ")[0].removeprefix("R")
    return (not number.isdigit(), int(number) if number.isdigit() else 0, name)


def counts(found: dict[str, Any]) -> str:
    """How many trials of a row were good."""
    good = next(value for key, value in found.items() if key not in ("of", "failures"))
    return f"{good} of {found['of']}"


def table(report: dict[str, Any]) -> str:
    """The scorecard in Markdown."""
    rows = report["rows"]
    lines = ["| | what | ours | stock |", "|---|---|---|---|"]
    for name in sorted((one for one in ROWS if one in rows and not one.endswith(" stock")), key=order):
        found = rows[name]
        what = (ROWS[name].__doc__ or "").splitlines()[0]
        ours = f"{found['share']:+.1%} of the time" if name == "cost" else counts(found)
        stock = f"**{counts(rows[f'{name} stock'])}**" if f"{name} stock" in rows else STOCK.get(name, "")
        lines.append(f"| {name} | {what} | {ours} | {stock} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="such as R1,R2; nothing is written then, but with --update")
    parser.add_argument("--update", action="store_true", help="put the rows into the results that are there")
    parser.add_argument("--sample", type=int, default=0, help="trials of each row; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    script = load_script()
    report: dict[str, Any] = {
        "seed": arguments.seed,
        "sample": arguments.sample,
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "rows": {},
    }
    for name in arguments.rows.split(",") if arguments.rows else ROWS:
        began = time.perf_counter()
        found = ROWS[name](script, arguments.sample, arguments.seed)
        found |= {"seed": arguments.seed, "sample": arguments.sample}
        report["rows"][name] = found | {"seconds": found.get("seconds", round(time.perf_counter() - began, 1))}
        print(name, json.dumps(report["rows"][name])[:1500], flush=True)
    path = ROOT / "benchmarks/reliability.json"
    if arguments.update and path.exists():
        report["rows"] = json.loads(path.read_text())["rows"] | report["rows"]
    if arguments.update or not arguments.rows:
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    sys.exit(any(found["failures"] for found in report["rows"].values()))


if __name__ == "__main__":
    main()
