"""How long an update takes on 1, 2 and 4 CPU processes, measured and as the plan's arithmetic of communication has it.

    python benchmarks/scaling.py [--only TEXT]     # about 10 minutes on two free cores; writes benchmarks/scaling.json

Whole runs of scripts/sft.py in float32, a thread a process, of the same 16 rows an update: the quickstart's base and a
Llama of 34M parameters. gloo is measured by itself first, then its bandwidth and latency stand in the plan's formulas
(lorasmith.memory.communication) in place of the assumed ones. What the prediction starts from is the update of one
process: arithmetic shrinks with the processes as long as there are cores, and on a CPU nothing hides what is sent. The
fastest of the updates counts, and of gloo's rounds, for other work slows the others down.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/scaling.json"
ROWS, MICRO_BATCH, UPDATES = 16, 4, 12
SIZES = (4096, 8 << 20)  # bytes of each process that are gathered to measure latency and bandwidth
REPEATS = 15
BASES = ("quickstart", "llama-34M")


@dataclass(frozen=True)
class Run:
    """One run; `engine` is DDP or FSDP2 where processes are more than one."""

    base: str
    engine: str
    processes: int

    @property
    def label(self) -> str:
        """The run in short."""
        return f"{self.base}, {self.engine}, {self.processes}" if self.processes > 1 else f"{self.base}, one process"


def runs() -> list[Run]:
    """Both bases alone and under both engines."""
    found = []
    for base in BASES:
        found += [Run(base, "one process", 1)]
        found += [Run(base, engine, processes) for engine in ("DDP", "FSDP2") for processes in (2, 4)]
    return found


def launched(words: list[str], config: dict[str, Any], folder: Path) -> None:
    """A program under an accelerate config."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def gloo(processes: int, folder: Path) -> dict[str, float]:
    """Bytes/s of an all-gather between so many processes, and seconds of one step of a small one."""
    import engine_memory

    out = folder / f"gloo-{processes}.json"
    config = engine_memory.config_of(engine_memory.Cell("DDP", processes))
    launched([str(Path(__file__).resolve()), "--gloo", str(out)], config, folder)
    found: dict[str, float] = json.loads(out.read_text())
    return found


def time_gloo(out: Path) -> None:
    """One process of gloo's measurement."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    n, seconds = distributed.get_world_size(), []
    for size in SIZES:
        sent = torch.ones(size // 4)
        received = torch.empty(n * size // 4)
        times = []
        for _ in range(REPEATS):
            distributed.barrier()
            start = time.perf_counter()
            distributed.all_gather_into_tensor(received, sent)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    if distributed.get_rank() == 0:
        figures = {"latency": seconds[0] / (n - 1), "bytes_per_second": SIZES[1] * (n - 1) / seconds[1]}
        out.write_text(json.dumps(figures))
    distributed.destroy_process_group()


def recipe_of(run: Run, bases: Path, out: Path) -> list[str]:
    """The quickstart's recipe with other words."""
    words = ["recipes/quickstart.yaml", "model.quantization=none", "model.dtype=float32", "data.eval=null"]
    words += [f"run.effective_batch={ROWS}", f"run.micro_batch={MICRO_BATCH}", "run.gradient_checkpointing=false"]
    words += [f"trainer.max_steps={UPDATES}", "trainer.logging_steps=1", "trainer.save_strategy=no"]
    words += ["trainer.eval_strategy=no", f"output_dir={out}"]
    return words + ([] if run.base == "quickstart" else [f"model.name={bases / run.base}"])


def measure(run: Run, bases: Path, folder: Path) -> dict[str, float]:
    """The seconds of an update, and tokens of an update, of a run."""
    import engine_memory

    out = folder / f"{run.base}-{run.engine}-{run.processes}"
    config = engine_memory.config_of(engine_memory.Cell(run.engine, run.processes))
    if run.processes == 1:
        config |= {"distributed_type": "NO"}
    launched(["scripts/sft.py", *recipe_of(run, bases, out)], config, folder)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    updates = [line for line in lines if "loss" in line]
    seconds = [after["seconds"] - before["seconds"] for before, after in itertools.pairwise(updates)]
    tokens = updates[-1]["num_tokens"] / len(updates)
    return {"seconds": round(min(seconds), 4), "tokens": round(tokens, 1)}


def predicted(run: Run, bases: Path, alone: float, known: dict[str, float], cores: int) -> dict[str, float]:
    """Seconds of an update by the plan's formulas, and what of it is spent on sending.

    Args:
        alone: Seconds of an update of one process.
        known: gloo's figures.
    """
    import memory_grid

    from lorasmith.engine import Engine
    from lorasmith.memory import communication
    from lorasmith.memory.facts import find_config
    from lorasmith.memory.plans import make_plan
    from lorasmith.memory.setting import Rows
    from lorasmith.memory.shapes import read_shape
    from lorasmith.recipe import load_recipe

    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", recipe_of(run, bases, Path("out"))[1:], "sft")
    shape = read_shape(find_config(recipe.model.name if run.base == "quickstart" else str(bases / run.base))[0])
    engine = Engine(run.engine, run.processes, cpu=True)
    rows = Rows([64] * 64, 64, 64, 32, 0, "made up")
    setting = make_plan(recipe, shape, rows, memory_grid.a_machine("cpu"), engine=engine).setting
    links = replace(communication.GLOO, device=known["bytes_per_second"], latency=known["latency"])
    fetches = 2 * setting.accumulation * communication.fetch_seconds(shape, setting, links)
    sending = fetches + communication.update_waiting_seconds(shape, setting, links)
    together = max(1.0, run.processes / cores)  # processes that share a core
    return {"seconds": round(alone / run.processes * together + sending, 4), "sending": round(sending, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only the base of this name; nothing is written")
    parser.add_argument("--gloo", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gloo:
        time_gloo(arguments.gloo)
        return
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import engine_memory
    import memory_grid

    from lorasmith.memory.machine import cores

    found: list[dict[str, Any]] = []
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine_memory.make_bases(folder)
        for base in engine_memory.MODELS:
            for path in (ROOT / "quickstart/base").glob("*"):
                if path.name.startswith(("tokenizer", "chat_template")):
                    (folder / base / path.name).write_bytes(path.read_bytes())
        known = {processes: gloo(processes, folder) for processes in (2, 4)}
        print(json.dumps(known), flush=True)
        alone: dict[str, float] = {}
        for run in runs():
            if arguments.only and run.base != arguments.only:
                continue
            figures = measure(run, folder, folder)
            one = {"base": run.base, "engine": run.engine, "processes": run.processes, **figures}
            if run.processes == 1:
                alone[run.base] = figures["seconds"]
            else:
                planned = predicted(run, folder, alone[run.base], known[run.processes], cores())
                one |= {"predicted": planned["seconds"], "sending": planned["sending"]}
                one["error"] = round(planned["seconds"] / figures["seconds"] - 1, 3)
            found.append(one)
            print(f"{run.label}: {json.dumps(one)}", flush=True)
    if not arguments.only:
        report = {
            "machine": memory_grid.machine_line("cpu"),
            "cores": cores(),
            "load": [round(before, 1), round(os.getloadavg()[0], 1)],  # processes that wanted a core, ours included
            "rows": ROWS,
            "gloo": {str(k): {name: round(v, 7) for name, v in one.items()} for k, one in known.items()},
            "runs": found,
            "gpus": [],  # the same on GPUs: not yet run
        }
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
