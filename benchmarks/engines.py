"""The same losses from 1, 2 and 4 processes under DDP and FSDP2, and adapters that load anywhere.

    python benchmarks/engines.py [--scripts sft,dpo] [--processes 2]     # about 15 minutes on two free cores

Writes benchmarks/engines.json, whose table docs/make_scaling.py puts on its page. Each run makes six updates of 16
rows of the quickstart, 4 at a time, with the embedded base; what differs is the accelerate config alone. Compared with
one process are the losses of all updates, those of the evaluation rows, and the adapter's tensors, whose names and shapes
must be the same; the largest difference counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/engines.json"
SCRIPTS = ("sft", "dpo", "text_classification")
PAIRS = ("dpo", "orpo", "reward")  # trained on pairs of answers
BASES = {"none": "float32", "nf4": "nf4"}
ENGINES = {"DDP": "cpu_2_processes", "FSDP2": "cpu_2_processes_fsdp2"}
UPDATES, ROWS, MICRO_BATCH = 6, 16, 4
SETTINGS = f"""\
model: {{name: {ROOT / "quickstart/base"}, dtype: float32}}
adapter: {{method: lora, rank: 8, alpha: 16}}
data: {{train: TRAIN, eval: EVAL}}
run: {{effective_batch: {ROWS}, micro_batch: {MICRO_BATCH}, keep_checkpoints: true}}
output_dir: OUT
trainer:
  max_steps: {UPDATES}
  learning_rate: 2e-3
  logging_steps: 1
  eval_strategy: steps
  eval_steps: {UPDATES}
  save_steps: {UPDATES // 2}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", default=",".join(SCRIPTS))
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--bases", default=",".join(BASES), help="quantization of the base")
    parser.add_argument("--note", default="", help="kept beside the figures")
    arguments = parser.parse_args()
    counts = [int(one) for one in arguments.processes.split(",")]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for script in arguments.scripts.split(","):
            for base in arguments.bases.split(","):
                found += compare(script, base, counts, Path(folder))
    RESULTS.write_text(json.dumps({"note": arguments.note, "found": found}, indent=1) + "\n")
    print(table(found))


def compare(script: str, base: str, counts: list[int], folder: Path) -> list[dict[str, Any]]:
    """A run of one process, and how far those of more are from it."""
    recipe = write_recipe(script, folder)
    alone = train(script, recipe, base, "cpu", 1, folder / f"{script}-{base}-1")
    found = []
    for engine, config in ENGINES.items():
        for count in counts:
            other = train(script, recipe, base, config, count, folder / f"{script}-{base}-{engine}-{count}")
            found.append(
                {"script": script, "base": BASES[base], "engine": engine, "processes": count}
                | differences(alone, other)
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def write_recipe(script: str, folder: Path) -> Path:
    """A recipe of the script, over rows made of the quickstart's: pairs with another row's answer, colours as labels."""
    paths = []
    for part in ("train", "heldout"):
        rows = [json.loads(line) for line in (ROOT / f"quickstart/data/{part}.jsonl").read_text().splitlines()][:130]
        if script in PAIRS:
            answers = [row["messages"][-1:] for row in rows]
            rows = [
                {"prompt": row["messages"][:-1], "chosen": answers[at], "rejected": answers[at - 1]}
                for at, row in enumerate(rows)
            ]
        elif script == "text_classification":
            rows = [
                {"text": user["content"], "label": json.loads(answer["content"])["colour"]}
                for user, answer in (row["messages"] for row in rows)
            ]
        paths.append(folder / f"{script}-{part}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / f"{script}.yaml"
    recipe.write_text(SETTINGS.replace("TRAIN", str(paths[0])).replace("EVAL", str(paths[1])))
    return recipe


def train(script: str, recipe: Path, base: str, config: str, count: int, out: Path) -> Path:
    """Run a script under an accelerate config to its end."""
    words = ["-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml"]
    words += ["--num_processes", str(count)] if count > 1 else []
    words += [f"scripts/{script}.py", str(recipe), f"output_dir={out}", f"model.quantization={base}", "--overwrite"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{script} under {config} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return out


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of the losses of updates, of evaluations, and of the adapter's tensors."""
    from safetensors.torch import load_file

    found = {}
    for key in ("loss", "eval_loss"):
        pair = [logged(folder, key) for folder in (one, other)]
        if not pair[0] or len(pair[0]) != len(pair[1]):
            raise SystemExit(f"{other}: {len(pair[1])} values of {key}, and {len(pair[0])} with one process")
        found[key] = max(abs(a - b) for a, b in zip(*pair, strict=True))
    adapters = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    if [(name, tensor.shape) for name, tensor in adapters[0].items()] != [
        (name, tensor.shape) for name, tensor in adapters[1].items()
    ]:
        raise SystemExit(f"{other}: the adapter's tensors have other names or shapes than with one process")
    found["adapter"] = max((adapters[0][name] - adapters[1][name]).abs().max().item() for name in adapters[0])
    return found


def logged(folder: Path, key: str) -> list[float]:
    """All values of a key in a run's log."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def table(found: list[dict[str, Any]]) -> str:
    """A row for each comparison."""
    lines = [
        "| script | base | engine | processes | losses | evaluation | adapter |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        figures = " | ".join(f"{one[key]:.0e}" for key in ("loss", "eval_loss", "adapter"))
        lines.append(f"| {one['script']}.py | {one['base']} | {one['engine']} | {one['processes']} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
