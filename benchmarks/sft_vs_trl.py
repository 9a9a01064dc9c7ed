"""sft.py against trl's own script: same model, same rows, same tokens, same losses, in one run, in turn.

    python benchmarks/sft_vs_trl.py [--repeats 3] [--steps 30]     # writes benchmarks/sft_vs_trl.json; about 15 minutes

trl runs at its defaults (only what a CPU demands is set) and at the best setting found by hand for this machine: float32
or bfloat16 weights without autocast, whichever is faster, no gradient checkpointing. Ours runs at its defaults. Each
contender is a whole process; wall time is from the command to the adapter on disk, tokens/s leave padding out.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY = 16_384
BATCH = 16  # rows an update
MICRO = 4  # rows a forward pass, equal for all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        write_rows(folder / "rows" / "train.jsonl", arguments.steps * BATCH)
        contenders = {
            "lorasmith": ours(folder, arguments.steps),
            "trl, defaults": trls(folder, arguments.steps, ["--bf16", "true"]),
            "trl, best by hand (float32)": trls(
                folder, arguments.steps, ["--dtype", "float32", "--bf16", "false", "--gradient_checkpointing", "false"]
            ),
            "trl, best by hand (bfloat16)": trls(
                folder, arguments.steps, ["--dtype", "bfloat16", "--bf16", "false", "--gradient_checkpointing", "false"]
            ),
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for repeat in range(arguments.repeats):
            for name, command in contenders.items():  # in turn, so that a slow spell hits all
                if repeat and name.endswith("(bfloat16)") and slower(runs, name):
                    continue  # the slower of the two hand-tuned dtypes is measured once
                runs[name].append(measured(command, folder))
                print(f"{repeat + 1}/{arguments.repeats} {name}: {runs[name][-1]}", flush=True)
    report = summary(runs)
    (Path(__file__).parent / "sft_vs_trl.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


def make_model(folder: Path) -> None:
    """A random Llama with the quickstart's tokenizer, its vocabulary padded to a common size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=2048, eos_token_id=2, pad_token_id=0, bos_token_id=None, **SIZES
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(f"quickstart/base/{file}", folder)


def write_rows(path: Path, count: int) -> None:
    """Single-turn conversations with lognormal lengths, 30 to 600 tokens."""
    rng = random.Random(0)
    words = (
        "lamp cup chair book clock table red blue green three four five Oslo Rome Lima Friday Monday Mia Tess".split()
    )
    path.parent.mkdir()
    with path.open("w") as file:
        for _ in range(count):
            asked, answered = (max(8, min(280, int(rng.lognormvariate(4.2, 0.7)))) for _ in range(2))
            turns = [{"role": "user", "content": " ".join(rng.choices(words, k=asked))}]
            turns.append({"role": "assistant", "content": " ".join(rng.choices(words, k=answered))})
            file.write(json.dumps({"messages": turns}) + "\n")


def ours(folder: Path, steps: int) -> list[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {folder}/model}}\nadapter: {{rank: 16, alpha: 32}}\ndata: {{train: {folder}/rows/train.jsonl}}\n"
        f"run: {{effective_batch: {BATCH}, micro_batch: {MICRO}}}\noutput_dir: {folder}/out\n"
        f"trainer: {{max_steps: {steps}, learning_rate: 2e-4, logging_steps: 1, save_strategy: no}}\n"
    )
    return ["scripts/sft.py", str(recipe)]


def trls(folder: Path, steps: int, extra: list[str]) -> list[str]:
    import importlib.util

    script = Path(importlib.util.find_spec("trl").origin).parent / "scripts/sft.py"  # type: ignore[union-attr, arg-type]
    return [
        str(script), "--model_name_or_path", f"{folder}/model", "--dataset_name", f"{folder}/rows", "--output_dir",
        f"{folder}/out", "--use_cpu", "true", "--use_peft", "--lora_r", "16", "--lora_alpha", "32", "--lora_dropout", "0",
        "--lora_target_modules", "all-linear", "--assistant_only_loss", "true", "--learning_rate", "2e-4",
        "--per_device_train_batch_size", str(MICRO), "--gradient_accumulation_steps", str(BATCH // MICRO), "--max_steps",
        str(steps), "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", *extra,
    ]  # fmt: skip


def measured(command: list[str], folder: Path) -> dict[str, Any]:
    """One whole process: its times, peak memory, last loss and training speed."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_CACHE": f"{folder}/cache",
    }
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status or not (folder / "out/adapter_model.safetensors").exists():
        raise SystemExit(f"{command} failed:\n{output[-3000:]}")
    shutil.rmtree(folder / "cache", ignore_errors=True)  # the second preparation must not be served from a cache
    run = folder / "out/run.json"
    if run.exists():
        speed = json.loads(run.read_text())["speed"]
        tokens, seconds = speed["tokens"], speed["seconds"]
        events = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
        loss = [event["loss"] for event in events if "loss" in event][-1]
    else:
        logs = [
            {key: float(value) for key, value in re.findall(r"'(\w+)': '?([-\d.e+]+)'?", line)}
            for line in output.splitlines()
            if "{'" in line
        ]
        tokens = max(log.get("num_tokens", 0) for log in logs)
        seconds = next(log["train_runtime"] for log in logs if "train_runtime" in log)
        loss = [log["loss"] for log in logs if "loss" in log][-1]
    return {
        "tokens_per_second": round(tokens / seconds, 1),
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gib": round(usage.ru_maxrss / 2**20, 3),
        "tokens": int(tokens),
        "last_loss": loss,
    }


def slower(runs: dict[str, list[dict[str, Any]]], name: str) -> bool:
    other = name.replace("(bfloat16)", "(float32)")
    return runs[name][0]["wall_seconds"] > runs[other][0]["wall_seconds"]


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each figure, and ours over each of the others."""
    figures = ("tokens_per_second", "wall_seconds", "cpu_seconds", "peak_gib")
    middle = {
        name: {figure: sorted(run[figure] for run in found)[len(found) // 2] for figure in figures}
        for name, found in runs.items()
    }
    tokens = {run["tokens"] for found in runs.values() for run in found}
    # trl prints its count with four digits.
    assert max(tokens) < 1.001 * min(tokens), f"the contenders trained on different tokens: {tokens}"
    ratios = {
        name: {
            "times_the_speed": round(middle["lorasmith"]["tokens_per_second"] / other["tokens_per_second"], 2),
            "share_of_the_wall_time": round(middle["lorasmith"]["wall_seconds"] / other["wall_seconds"], 2),
            "share_of_the_memory": round(middle["lorasmith"]["peak_gib"] / other["peak_gib"], 2),
        }
        for name, other in middle.items()
        if name != "lorasmith"
    }
    shape = {**SIZES, "vocab_size": VOCABULARY, "micro_batch": MICRO, "effective_batch": BATCH, "tokens": max(tokens)}
    machine = f"{platform.machine()}, {os.cpu_count()} threads"
    return {"median": middle, "ours_against": ratios, "runs": runs, "shape": shape, "machine": machine}


def table(report: dict[str, Any]) -> str:
    """The medians as a Markdown table."""
    lines = ["| | tokens/s | command to adapter | CPU time | peak memory |", "|---|---|---|---|---|"]
    for name, one in report["median"].items():
        lines.append(
            f"| {name} | {one['tokens_per_second']:,.0f} | {one['wall_seconds']:.1f} s | {one['cpu_seconds']:.0f} s | "
            f"{one['peak_gib']:.2f} GiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
