"""What the levers of `speed:` are worth for preferences: each script's training with all of them, and with none.

    python benchmarks/preference_speed.py [--repeats 2] [--steps 3] [--only dpo]      # about 10 minutes

Writes benchmarks/preference_speed.json and the table in docs/preference.md, unless --only is given.

A random Llama of 100M parameters and rows of about 260 tokens, whose prompts have about 130. Both variants take turns,
each in a process of its own, and each is told by its fastest run: seconds of training, evaluation and saving left out,
and the process's peak memory. With none of the levers it is trl's own trainer, padding and loss, with our guards.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from preference_memory import Cell, make_base, run_words

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/preference_speed.json"
MARKS = ("<!-- speed -->", "<!-- /speed -->")
METHODS = ("dpo", "orpo", "cpo", "kto", "reward")
LEVERS = ("padding_free", "shared_prompts", "chunked_loss", "fused_lora")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", choices=METHODS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} threads", "methods": {}}
    with tempfile.TemporaryDirectory() as name:
        make_base(Path(name) / "base")
        for method in [arguments.only] if arguments.only else METHODS:
            report["methods"][method] = measure(method, Path(name), arguments)
            print(json.dumps({method: report["methods"][method]}), flush=True)
    if not arguments.only:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        page = ROOT / "docs/preference.md"
        page.write_text(with_table(page.read_text(), report))
    print(table(report))


def measure(method: str, shared: Path, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of training and peak memory in GiB of each variant, the variants taking turns."""
    runs: dict[str, list[dict[str, float]]] = {"all": [], "none": []}
    for _ in range(arguments.repeats):
        for variant, found in runs.items():
            off = [f"speed.{lever}=false" for lever in LEVERS] if variant == "none" else []
            found.append(one_run(method, shared, arguments.steps, off))
    return {variant: min(found, key=lambda one: one["seconds"]) for variant, found in runs.items()}


def one_run(method: str, shared: Path, steps: int, words: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, *run_words(Cell(method), Path(name), shared / "base"), "run.effective_batch=8"]
        command += ["data.eval=null", f"trainer.max_steps={steps}", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{method} ended with {done.returncode}: {done.stderr[-500:]}")
        run = json.loads((Path(name) / "out/run.json").read_text())
    return {"seconds": run["speed"]["seconds"], "memory_gib": run["memory"]["measured_gib"]}


def table(report: dict[str, Any]) -> str:
    """The report for docs/preference.md."""
    lines = [
        "| script | time with none of the levers over all of them | peak memory: none | all |",
        "|---|---|---|---|",
    ]
    for method, found in report["methods"].items():
        ratio = found["none"]["seconds"] / found["all"]["seconds"]
        memory = " | ".join(f"{found[variant]['memory_gib']:.2f} GiB" for variant in ("none", "all"))
        lines.append(f"| {method}.py | {ratio:.2f} | {memory} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, report: dict[str, Any]) -> str:
    """The page with this report's table between its marks."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    said = f"Measured by `python benchmarks/preference_speed.py` ({report['machine']}):\n\n"
    return f"{before}{MARKS[0]}\n{said}{table(report)}{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
