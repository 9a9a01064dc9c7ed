"""How soon the embedded default learns, and what each setting changes: updates and seconds to a target loss.

    python benchmarks/learns.py [--seeds 42,43] [--only rank,alpha --update]    # writes benchmarks/learns.json

Each setting is recipes/quickstart.yaml with one thing changed, run by scripts/sft.py in a process forked behind the
imports, one thread each. The loss is that of the held-out orders' first 32, after every fourth update, without dropout.
Seconds are the CPU time of training to that update, evaluations left out: what a clock shows on a thread of its own.
About 25 minutes of CPU time, two runs side by side on two cores; --update keeps the results that it does not replace.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scorecard.trial import ROOT, each, load_script, run

RESULTS = ROOT / "benchmarks/learns.json"
TARGETS = (0.1, 0.01)  # before training the loss is 3.5; at 0.01 about 99 in 100 answers are right to the letter
EVERY = 4  # updates between two evaluations
ROWS = 32
DEFAULT = "as it is"
LAYERS = {
    "q, v": "[q_proj,v_proj]",
    "attention": "[q_proj,k_proj,v_proj,o_proj]",
    "MLP": "[gate_proj,up_proj,down_proj]",
}
# group -> setting -> what is changed in recipes/quickstart.yaml
SETTINGS: dict[str, dict[str, list[str]]] = {
    "default": {DEFAULT: []},
    "learning rate": {one: [f"trainer.learning_rate={one}"] for one in ("2e-4", "6e-4", "6e-3", "2e-2")},
    "rank": {f"{one}, alpha 32": [f"adapter.rank={one}"] for one in (4, 8, 64)}
    | {"64, alpha 128": ["adapter.rank=64", "adapter.alpha=128"]},
    "alpha": {
        "16": ["adapter.alpha=16"],
        "64": ["adapter.alpha=64"],
        "32, rsLoRA": ["adapter.method=rslora"],
    },
    "layers": {name: [f"adapter.target_modules={modules}"] for name, modules in LAYERS.items()},
    "LoRA+": {
        "4": ["adapter.loraplus_lr_ratio=4"],
        "16": ["adapter.loraplus_lr_ratio=16"],
        "16, learning rate 5e-4": ["adapter.loraplus_lr_ratio=16", "trainer.learning_rate=5e-4"],
    },
    "method": {
        "DoRA": ["adapter.method=dora"],
        "LoRA, 16-bit base": ["model.quantization=none"],
        "PiSSA, 16-bit base": ["model.quantization=none", "adapter.method=pissa"],
        "OLoRA, 16-bit base": ["model.quantization=none", "adapter.method=olora"],
    },
    "rows an update": {
        "8, so 240 updates": ["run.effective_batch=8", "run.micro_batch=8"],
        "32, so 60 updates": ["run.effective_batch=32"],
        "64, so 30 updates": ["run.effective_batch=64"],
    },
    "schedule": {
        "constant after warm-up": ["trainer.lr_scheduler_type=constant_with_warmup"],
        "no warm-up": ["trainer.warmup_steps=0"],
    },
    "half the epochs": {
        "nothing else": ["trainer.num_train_epochs=2"],
        "rsLoRA": ["trainer.num_train_epochs=2", "adapter.method=rslora"],
        "learning rate 6e-3": ["trainer.num_train_epochs=2", "trainer.learning_rate=6e-3"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="42,43")
    parser.add_argument("--only", help="groups, such as rank,alpha; default: all")
    parser.add_argument("--update", action="store_true", help="put the runs into the results that are there")
    parser.add_argument("--at-once", type=int, help="runs side by side; default: one a core")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(SETTINGS)
    earlier = json.loads(RESULTS.read_text())["settings"] if arguments.update else {}
    script = load_script()
    began = time.perf_counter()

    def trial(job: tuple[str, str, int]) -> str:
        group, setting, seed = job
        found = measured(script, SETTINGS[group][setting], seed, rows)
        elapsed = time.perf_counter() - began
        print(f"{elapsed:5.0f} s  {group}: {setting}: {json.dumps(found)[:110]}", flush=True)
        return json.dumps([*job, found])

    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    jobs = [(group, setting, seed) for seed in seeds for group in chosen for setting in SETTINGS[group]]
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.jsonl"
        held_out = (ROOT / "quickstart/data/heldout.jsonl").read_text().splitlines(keepends=True)
        rows.write_text("".join(held_out[:ROWS]))
        results = sorted((json.loads(text) for text in each(jobs, trial, arguments.at_once)), key=lambda one: one[2])
    settings = {
        group: {
            name: {one["seed"]: one for one in earlier.get(group, {}).get(name, [])}
            | {seed: found for into, of, seed, found in results if (into, of) == (group, name)}
            for name in names
        }
        for group, names in SETTINGS.items()
    }
    report: dict[str, Any] = {
        "targets": TARGETS,
        "every": EVERY,
        "rows": ROWS,
        "machine": f"{platform.machine()}, one thread a run",
    }
    report["settings"] = {
        group: {name: [runs[seed] for seed in sorted(runs)] for name, runs in names.items() if runs}
        for group, names in settings.items()
        if any(names.values())
    }
    RESULTS.write_text(json_text(report))
    print(table(report))


def measured(script: Any, overrides: list[str], seed: int, rows: Path) -> dict[str, Any]:
    """One run: the evaluation losses, the updates and seconds to each target (null: not reached), and its cost."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        words = ["recipes/quickstart.yaml", *overrides, f"seed={seed}", f"data.eval={rows}", f"output_dir={folder}"]
        words += [f"trainer.eval_steps={EVERY}", "trainer.save_strategy=no"]
        ended = run(script, words, hook=count_cpu_time, limit=600)
        if ended.code not in (0, 4):  # 4: it diverged, which is a result
            raise SystemExit(f"{' '.join(words)}: {ended.text[-500:]}")
        events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [event for event in events if "eval_loss" in event]
    reached = [next((one for one in evaluations if one["eval_loss"] <= target), None) for target in TARGETS]
    last = evaluations[-1]
    return {
        "seed": seed,
        "updates": [one and one["step"] for one in reached],
        "seconds": [one and round(one["seconds"], 2) for one in reached],
        "accuracy": [one and round(one["eval_mean_token_accuracy"], 4) for one in reached],
        "diverged": ended.code == 4,
        "all_updates": last["step"],
        "all_seconds": round(last["seconds"], 2),
        "losses": [float(f"{one['eval_loss']:.3g}") for one in evaluations],
    }


def count_cpu_time() -> None:
    """Let a run's clock show its CPU time, which other programs on the machine do not stretch."""
    from lorasmith.runs import watch

    vars(watch)["time"] = SimpleNamespace(**vars(time) | {"perf_counter": time.process_time})


def mean_and_range(values: list[float | None], digits: int) -> str:
    """`12 (8 to 16)`, or what is known when a seed did not get there."""
    there = [value for value in values if value is not None]
    if not there:
        return "not reached"
    text = f"{sum(there) / len(there):.{digits}f}"
    if len(there) < len(values):
        return f"{text}; {len(values) - len(there)} of {len(values)} not reached"
    low, high = f"{min(there):.{digits}f}", f"{max(there):.{digits}f}"
    return text if low == high else f"{text} ({low} to {high})"


def table(report: dict[str, Any]) -> str:
    """The results in Markdown: mean over the seeds, and range."""
    targets = report["targets"]
    lines = [
        f"| changed | to | {' | '.join(f'updates to {one}' for one in targets)} | seconds to {targets[-1]} | loss at the end |",
        "|---|---|" + "---|" * (len(targets) + 2),
    ]
    for group, settings in report["settings"].items():
        for setting, runs in settings.items():
            cells = [mean_and_range([one["updates"][k] for one in runs], 0) for k in range(len(targets))]
            cells.append(mean_and_range([one["seconds"][-1] for one in runs], 1))
            ends = mean_and_range([one["losses"][-1] for one in runs], 4)
            cells.append("diverged" if any(one["diverged"] for one in runs) else ends)
            lines.append(f"| {group} | {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def json_text(report: dict[str, Any]) -> str:
    """JSON with a line for each run."""
    head = {key: value for key, value in report.items() if key != "settings"}
    groups = []
    for group, settings in report["settings"].items():
        inner = [
            f"  {json.dumps(setting)}: [\n   " + ",\n   ".join(json.dumps(one) for one in runs) + "\n  ]"
            for setting, runs in settings.items()
        ]
        groups.append(f" {json.dumps(group)}: {{\n" + ",\n".join(inner) + "\n }")
    return json.dumps(head)[:-1] + ', "settings": {\n' + ",\n".join(groups) + "\n}}\n"


if __name__ == "__main__":
    main()
