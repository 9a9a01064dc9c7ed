"""Planned against measured peak memory of every training method, on one base of random weights.

    python benchmarks/preference_memory.py [--only dpo,nf4]     # writes benchmarks/preference_memory.json

Each cell is a whole run of scripts/<method>.py in a process of its own, rehearsal, evaluation and save included, on a
Llama of 100M parameters and rows of about 256 tokens. The plan is the run's own. On a CPU, what torch's allocator hands
out is added up from the profiler's events while training, over what the model holds; on a GPU the allocator's peak is
read. A method whose script is missing is left out.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/preference_memory.json"
SHAPE = "100M"  # of speed_inputs.py
METHODS = {"sft": 4, "dpo": 2, "orpo": 2, "cpo": 2, "reward": 2, "kto": 4, "grpo": 4}  # rows that are four sequences
WORDS = ("the", "order", "is", "a", "red", "blue", "cup", "for", "you", "and", "one", "more", "of", "it", "to", "we")
PROMPT_WORDS, ANSWER_WORDS = 60, (40, 70)


@dataclass(frozen=True)
class Cell:
    """One run."""

    method: str
    quantization: str = "none"
    checkpointing: bool = False
    continued: bool = False  # whether it goes on from an adapter, which the reference then keeps a copy of

    @property
    def label(self) -> str:
        """The cell in short."""
        parts = [self.method, self.quantization, "checkpointing" * self.checkpointing, "continued" * self.continued]
        return ", ".join(part for part in parts if part)


def cells() -> list[Cell]:
    """Every method in full precision and in 4 bit, and what only some of them have."""
    every = [Cell(method, bits) for method in METHODS for bits in ("none", "nf4")]
    return [*every, Cell("dpo", checkpointing=True), Cell("kto", "nf4", True), Cell("dpo", "nf4", continued=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="only cells whose label holds all of these words; nothing is written"
    )
    parser.add_argument("--run", nargs=2, metavar=("CELL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    if arguments.run:
        print(json.dumps(measure(Cell(**json.loads(arguments.run[0])), Path(arguments.run[1]))))
        return
    wanted = [cell for cell in cells() if all(word in cell.label for word in arguments.only.split(","))]
    done: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "base")
        for cell in wanted:
            found = {"label": cell.label, "why": f"scripts/{cell.method}.py is missing"}
            if (ROOT / f"scripts/{cell.method}.py").exists():
                found = in_a_process(cell, folder)
            (left_out if "why" in found else done).append(found)
            print(line(found), flush=True)
    from memory_grid import machine_line, summary

    report = {"machine": machine_line("cuda" if on_gpu() else "cpu"), "cells": done, "left_out": left_out}
    report |= {"summary": summary(done)} if done else {}
    if not arguments.only:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))


def line(found: dict[str, Any]) -> str:
    if "why" in found:
        return f"{found['label']}: left out, {found['why']}"
    planned, measured = found["predicted_gib"], found["measured_gib"]
    return (
        f"{found['label']}: {planned:.3f} planned, {measured:.3f} measured, {found['error']:+.1%} ({found['moment']})"
    )


def in_a_process(cell: Cell, folder: Path) -> dict[str, Any]:
    """What a cell gives in a fresh process; with the reason in `why` where it fails."""
    command = [sys.executable, __file__, "--run", json.dumps(asdict(cell)), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"label": cell.label, "why": " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"}
    return found


def make_base(folder: Path) -> None:
    """A base of random weights with the quickstart's tokenizer."""
    import torch
    from speed_inputs import SHAPES
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(**SHAPES[SHAPE]["config"], **ids)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "quickstart/base" / name, folder)


def rows_of(method: str, count: int, seed: str) -> list[dict[str, Any]]:
    """Made-up rows for a method, each sequence of another length."""
    draw = random.Random(seed)

    def text(words: int) -> str:
        return " " + " ".join(draw.choice(WORDS) for _ in range(words))

    found: list[dict[str, Any]] = []
    for i in range(count):
        prompt, answer, other = text(PROMPT_WORDS), text(draw.randint(*ANSWER_WORDS)), text(draw.randint(*ANSWER_WORDS))
        row: dict[str, Any] = {"prompt": prompt, "chosen": answer, "rejected": other}
        if method == "grpo":
            row = {"prompt": prompt, "answer": answer}
        elif method in ("sft", "kto"):
            row = {"prompt": prompt, "completion": answer} | ({"label": i % 2 == 0} if method == "kto" else {})
        found.append(row)
    return found


def run_words(cell: Cell, folder: Path, base: Path) -> list[str]:
    """A script's command line for a cell; its recipe is written into the folder."""
    for name, count in (("train", 16), ("eval", 4)):
        rows = rows_of(cell.method, count, name)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-4, "eval_strategy": "no"}
    own: dict[str, Any] = {"max_length": 1024}
    if cell.method == "grpo":  # random weights hardly ever end a completion before it is as long as it may be
        own = {"num_generations": METHODS["grpo"], "max_completion_length": 3 * PROMPT_WORDS}
    recipe = {
        "model": {"name": str(base), "quantization": cell.quantization} | ({} if on_gpu() else {"dtype": "float32"}),
        "adapter": {"rank": 16, "alpha": 32} | ({"from": str(folder / "first")} if cell.continued else {}),
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "run": {"effective_batch": METHODS[cell.method], "micro_batch": METHODS[cell.method],
                "gradient_checkpointing": cell.checkpointing},
        "speed": {"weight_cache": False},
        "output_dir": str(folder / "out"),
        "trainer": trainer | own,
    }  # fmt: skip
    if cell.method == "grpo":
        recipe["rewards"] = [{"function": "rewards/length.py:within", "most": PROMPT_WORDS}]
    (folder / "recipe.yaml").write_text(json.dumps(recipe))  # which YAML holds
    return [f"scripts/{cell.method}.py", str(folder / "recipe.yaml")]


def measure(cell: Cell, shared: Path) -> dict[str, Any]:
    """Run a cell in this process; GiB of live tensors, planned and measured."""
    from lorasmith.memory.weights import GIB

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = run_words(cell, folder, shared / "base")
        if cell.continued:
            first_adapter(words, folder)
        peaks: list[int] = []
        sys.argv = words
        spec = importlib.util.spec_from_file_location("measured_script", ROOT / words[0])
        assert spec
        assert spec.loader
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        made = script.make_trainer
        vars(script)["make_trainer"] = lambda *given: watched(*made(*given), peaks)
        with open(os.devnull, "w") as nowhere:
            kept, sys.stdout = sys.stdout, nowhere
            try:
                script.main()
            finally:
                sys.stdout = kept
        run = json.loads((folder / "out/run.json").read_text())
    predicted = run["plan"]["tensors_gib"]
    measured = run["memory"]["measured_gib"] if on_gpu() else peaks[0] / GIB
    return {
        "label": cell.label,
        **asdict(cell),
        "predicted_gib": predicted,
        "measured_gib": round(measured, 4),
        "error": round(predicted / measured - 1, 4),
        "moment": run["plan"]["moment"],
        "parts_gib": run["plan"]["parts_gib"],
    }


def first_adapter(words: list[str], folder: Path) -> None:
    """An adapter that is no new one, trained by the same script."""
    changed = ["adapter.from=null", f"output_dir={folder / 'first'}", "model.quantization=none", "trainer.max_steps=1"]
    subprocess.run([sys.executable, *words, *changed], check=True, capture_output=True)


def watched(model: Any, trainer: Any, peaks: list[int]) -> tuple[Any, Any]:
    """The script's trainer, whose training leaves its peak of live tensors on a CPU, in bytes, in `peaks`."""
    import gc

    import torch
    from memory_grid import held_bytes

    train = trainer.train_or_load

    def profiled(*given: Any) -> Any:
        gc.collect()
        held = held_bytes(model)
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            result = train(*given)
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        now = most = 0
        for event in sorted(events, key=lambda one: one.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        peaks.append(held + most)
        return result

    if not on_gpu():
        trainer.train_or_load = profiled
    return model, trainer


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def table(report: dict[str, Any]) -> str:
    """The report for docs/memory.md."""
    lines = ["| run | moment of the peak | planned GiB | measured GiB | error |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['label']} | {one['moment']} | {one['predicted_gib']:.3f} | {one['measured_gib']:.3f} | {one['error']:+.1%} |"
        for one in report["cells"]
    ]
    lines += [f"| {one['label']} | | | | left out: {one['why']} |" for one in report["left_out"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
