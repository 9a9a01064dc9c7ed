"""How fast: grpo.py and trl's own grpo script on the same model, prompts, rewards and seeds, in turn, in one run.

    python benchmarks/grpo_speed.py [--repeats 3] [--only "orders, nf4"]     # about 40 minutes on two cores

Writes benchmarks/grpo_speed.json and the tables between the marks in docs/reinforcement.md, unless --only is given.

- Each run is a process of its own; both sides take turns. Rank, alpha, layers, micro-batch, updates, learning rate and the
  reward's code are the same, ours with the levers of `speed:` at their defaults; the arithmetic is float32.
- The seconds are transformers' own `train_runtime` on both sides: the training loop without imports and loading. Ours has
  the rehearsal in it, which generates, trains a micro-batch and saves once before the first update, and is told beside it.
- The draws are the same, so rewards are equal until rounding parts them; the means of the last quarter are compared.
- Each lever of `speed:` is switched off in turn on the longer prompts, and all at once.
"""

import argparse
import ast
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/grpo_speed.json"
PAGE = ROOT / "docs/reinforcement.md"
MARKS = ("<!-- speed -->", "<!-- /speed -->")
SHARED = Path(os.environ.get("LORASMITH_SHARED", ROOT.parent / "shared"))
STORIES, QUESTIONS = SHARED / "models/stories260K-hf", SHARED / "data/math_gsm8k_train.jsonl"
LEVERS = ("padding_free", "shared_prompts", "chunked_loss", "fused_lora")
OURS, TRL = "grpo.py", "trl"
GROUP = 8  # completions of a prompt
EVERY = 5  # updates between two log events
REWARD_TOLERANCE = 0.05  # between the mean rewards of both sides, as a share of trl's
# One file for both sides: ours names it by path, trl by import.
REWARDS = '''
def number(completions, answer, **columns):
    """1 where the last number is the answer."""
    found = [[word for word in text_of(one).replace(".", " ").split() if word.isdigit()] for one in completions]
    return [float(numbers[-1:] == [wanted]) for numbers, wanted in zip(found, answer)]


def short_words(completions, **columns):
    """The share of words of three letters or fewer."""
    words = [text_of(one).split() or ["nothing"] for one in completions]
    return [sum(len(word) <= 3 for word in some) / len(some) for some in words]


def text_of(completion):
    return completion if isinstance(completion, str) else completion[-1]["content"]
'''


@dataclass(frozen=True)
class Task:
    """A model, its prompts, and how it is trained."""

    says: str
    base: Path
    reward: str
    batch: int  # completions an update, in one micro-batch
    updates: int
    completion: int  # tokens of the longest completion
    learning_rate: float


TASKS = {
    "orders": Task(
        "the quickstart's base, 480 prompts of 29 to 31 tokens", ROOT / "quickstart/base", "number", 64, 40, 16, 1e-3
    ),
    "questions": Task(
        "stories260K, 480 prompts of GSM8K of 100 to 200 tokens", STORIES, "short_words", 64, 20, 64, 1e-3
    ),
}


@dataclass(frozen=True)
class Cell:
    """One comparison."""

    task: str
    quantization: str
    beta: float

    @property
    def label(self) -> str:
        """The cell in short."""
        return f"{self.task}, {'float32' if self.quantization == 'none' else self.quantization}, beta {self.beta:g}"


CELLS = (
    *(Cell("orders", bits, beta) for bits in ("none", "nf4") for beta in (0.0, 0.04)),
    *(Cell("questions", "none", beta) for beta in (0.0, 0.04)),
)
LEVERS_CELL = CELLS[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, help="of each run, instead of the task's; nothing is written")
    parser.add_argument("--only", help="cells whose label has these words, or `levers`; nothing is written")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    report: dict[str, Any] = {"machine": machine(), "repeats": arguments.repeats, "cells": {}, "levers": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made_rewards.py").write_text(REWARDS)
        there = [task for task, one in TASKS.items() if one.base.exists()]
        for task in there:
            make_rows(task, folder)
        for cell in CELLS:
            if cell.task in there and (arguments.only or cell.label) in cell.label:
                report["cells"][cell.label] = compare(cell, folder, arguments)
        if LEVERS_CELL.task in there and (arguments.only or "levers") == "levers":
            report["levers"] = compare_levers(folder, arguments)
    print(tables(report))
    if not arguments.only and not arguments.updates:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        PAGE.write_text(with_tables(PAGE.read_text(), report))
    sys.exit("\n".join(unequal(report)) or None)


def machine() -> str:
    """The processor, and the threads that each run has."""
    import torch

    count = torch.get_num_threads()
    return f"{platform.machine()}, {count} thread{'s' * (count > 1)}"


def make_rows(task: str, folder: Path) -> None:
    """rows/<task>/train.jsonl, which both sides read: `prompt`, as messages or text, and `answer`."""
    if task == "orders":
        lines = (ROOT / "quickstart/data/train.jsonl").read_text().splitlines()
        turns = [json.loads(line)["messages"] for line in lines]
        rows = [
            {
                "prompt": [{"role": "user", "content": asked["content"] + " How many, number?"}],
                "answer": str(json.loads(answered["content"])["count"]),
            }
            for asked, answered in turns
        ]
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(STORIES)
        asked = [json.loads(line) for line in QUESTIONS.read_text().splitlines()[:1500]]
        fitting = [row for row in asked if 100 <= len(tokenizer(row["question"])["input_ids"]) <= 200]
        rows = [{"prompt": row["question"], "answer": row["answer"]} for row in fitting]
    path = folder / "rows" / task / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:480]))


def compare(cell: Cell, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both sides of a cell, taking turns."""
    sides: dict[str, list[dict[str, Any]]] = {OURS: [], TRL: []}
    for repeat in range(arguments.repeats):
        for side, runs in sides.items():
            runs.append(ours(cell, folder, arguments) if side == OURS else trls(cell, folder, arguments))
            print(f"{cell.label} {repeat + 1}/{arguments.repeats} {side}: {runs[-1]}", flush=True)
    return {side: medians(runs) for side, runs in sides.items()}


def compare_levers(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """grpo.py with all levers, without each, and with none, taking turns."""
    off = {"all": (), **{f"without {one}": (one,) for one in LEVERS}, "none": LEVERS}
    variants: dict[str, list[dict[str, Any]]] = {name: [] for name in off}
    for repeat in range(arguments.repeats):
        for name, runs in variants.items():
            runs.append(ours(LEVERS_CELL, folder, arguments, *(f"speed.{one}=false" for one in off[name])))
            print(f"levers, {name} {repeat + 1}/{arguments.repeats}: {runs[-1]}", flush=True)
    return {name: medians(runs) for name, runs in variants.items()}


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and all runs."""
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "rewards"}
    return figures | {"rewards": runs[0]["rewards"], "runs": runs}


def ours(cell: Cell, folder: Path, arguments: argparse.Namespace, *words: str) -> dict[str, Any]:
    """A run of grpo.py."""
    task, out = TASKS[cell.task], folder / "ours"
    recipe = folder / "recipe.json"  # JSON is YAML
    settings = {
        "model": {"name": str(task.base), "quantization": cell.quantization, "dtype": "float32"},
        "adapter": {"rank": 16, "alpha": 32},
        "data": {"train": f"{folder}/rows/{cell.task}/train.jsonl"},
        "rewards": [f"{folder}/made_rewards.py:{task.reward}"],
        "run": {"effective_batch": task.batch, "micro_batch": task.batch, "gradient_checkpointing": False},
        "output_dir": str(out),
        "trainer": trainer_settings(cell, arguments) | {"use_cpu": True},
    }
    recipe.write_text(json.dumps(settings))
    done = finished([sys.executable, "scripts/grpo.py", str(recipe), "--overwrite", *words], folder)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = figures_of(events, task, arguments) | {"peak_gib": done["peak_gib"]}
    updating = json.loads((out / "run.json").read_text())["speed"]["seconds"]
    return found | {"before_updates_seconds": round(found["seconds"] - updating, 2)}


def trls(cell: Cell, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """A run of trl's script, as its users would set it for a CPU."""
    task = TASKS[cell.task]
    script = Path(importlib.util.find_spec("trl").origin).parent / "scripts/grpo.py"  # type: ignore[union-attr, arg-type]
    flags = [f"--{key}={value}" for key, value in trainer_settings(cell, arguments).items()]
    if cell.quantization != "none":
        flags += ["--load_in_4bit", f"--bnb_4bit_quant_type={cell.quantization}", "--use_bnb_nested_quant"]
    command = [
        sys.executable, str(script), f"--model_name_or_path={task.base}", f"--dataset_name={folder}/rows/{cell.task}",
        f"--output_dir={folder}/trl", f"--reward_funcs=made_rewards.{task.reward}", "--use_cpu=true", "--bf16=false",
        "--dtype=float32", "--gradient_checkpointing=false", "--use_peft", "--lora_r=16", "--lora_alpha=32",
        "--lora_dropout=0", "--lora_target_modules=all-linear", f"--per_device_train_batch_size={task.batch}",
        "--gradient_accumulation_steps=1", "--save_strategy=no", "--report_to=none", "--disable_tqdm=true", "--seed=42",
        *flags,
    ]  # fmt: skip
    done = finished(command, folder)
    printed = [line for line in done["output"].splitlines() if line.startswith("{'")]
    events = [{key: float(value) for key, value in ast.literal_eval(line).items()} for line in printed]
    return figures_of(events, task, arguments) | {"peak_gib": done["peak_gib"]}


def trainer_settings(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """What both sides call by the same names."""
    task = TASKS[cell.task]
    return {
        "max_steps": arguments.updates or task.updates, "learning_rate": task.learning_rate, "warmup_steps": 5,
        "lr_scheduler_type": "linear", "num_generations": GROUP, "max_completion_length": task.completion,
        "beta": cell.beta, "logging_steps": EVERY,
    }  # fmt: skip


def finished(command: list[str], folder: Path) -> dict[str, Any]:
    """What a whole process printed, and its peak memory in GiB.

    Raises:
        SystemExit: If it fails.
    """
    own = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/datasets", "LORASMITH_CACHE": f"{folder}/cache"}
    own |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{ROOT}/src:{folder}", "TRANSFORMERS_VERBOSITY": "error"}
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:3])} ended with {process.returncode}: {log.read_text()[-800:]}")
    return {"output": log.read_text(), "peak_gib": round(usage.ru_maxrss / 2**20, 3)}


def figures_of(events: list[dict[str, Any]], task: Task, arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run from its log events."""
    rewards = [round(event["reward"], 4) for event in events if "reward" in event]
    [seconds] = [event["train_runtime"] for event in events if "train_runtime" in event]
    updates = arguments.updates or task.updates
    last = rewards[-max(1, len(rewards) // 4) :]
    return {
        "seconds": seconds,
        "updates_per_second": round(updates / seconds, 3),
        "completions_per_second": round(updates * task.batch / seconds, 1),
        "last_reward": round(statistics.mean(last), 4),
        "rewards": rewards,
    }


def unequal(report: dict[str, Any]) -> list[str]:
    """What the two sides did not learn alike, in words."""
    found = []
    for label, sides in report["cells"].items():
        a, b = sides[OURS]["last_reward"], sides[TRL]["last_reward"]
        if abs(a - b) > REWARD_TOLERANCE * abs(b):
            found.append(f"{label}: the reward of the last updates is {a} of ours and {b} of trl's")
    return found


def tables(report: dict[str, Any]) -> str:
    """The report for docs/reinforcement.md."""
    lines = [
        "| | updates/s: grpo.py | trl | ratio | completions/s: grpo.py | trl | peak memory: grpo.py | trl | last reward: "
        "grpo.py | trl |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, sides in report["cells"].items():
        a, b = sides[OURS], sides[TRL]
        lines.append(
            f"| {label} | {a['updates_per_second']:.2f} | {b['updates_per_second']:.2f} "
            f"| {b['seconds'] / a['seconds']:.2f} | {a['completions_per_second']:.0f} | {b['completions_per_second']:.0f} "
            f"| {a['peak_gib']:.2f} GiB | {b['peak_gib']:.2f} GiB | {a['last_reward']:.3f} | {b['last_reward']:.3f} |"
        )
    if report["levers"]:
        lines += ["", f"| levers ({LEVERS_CELL.label}) | time over that of all | peak memory |", "|---|---|---|"]
        whole = report["levers"]["all"]["seconds"]
        for name, one in report["levers"].items():
            lines.append(f"| {name} | {one['seconds'] / whole:.2f} | {one['peak_gib']:.2f} GiB |")
    return "\n".join(lines) + "\n"


def with_tables(page: str, report: dict[str, Any]) -> str:
    """The page with this report's tables between its marks."""
    before, _, rest = page.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    said = f"Measured by `python benchmarks/grpo_speed.py` ({report['machine']}), "
    said += f"{'one run each' if report['repeats'] == 1 else 'medians of ' + str(report['repeats'])}:\n\n"
    return f"{before}{MARKS[0]}\n{said}{tables(report)}{MARKS[1]}{after}"


if __name__ == "__main__":
    main()
