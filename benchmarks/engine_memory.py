"""The plan's memory of one process under DDP and FSDP2 against what is measured, by moment, on 2 and 4 CPU processes.

    python benchmarks/engine_memory.py [--only TEXT]     # writes benchmarks/engine_memory.json

Each cell makes a model with random weights, large enough that weights outweigh the rest, and trains three updates
through the script's own trainer, launched by accelerate. What torch's allocator hands out in each step and each update is added up from the
profiler's events, over the tensors that live when it begins. The first and the last process are measured; the larger
counts. DDP's buckets lie outside of Python's sight and are left out on both sides. Loading is not measured: on a CPU the shards and the model they are cut from share one memory.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/engine_memory.json"
UPDATES = 3
MODELS = {
    "llama-34M": {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
    "qwen3-32M": {"model_type": "qwen3", "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
                  "head_dim": 64, "num_key_value_heads": 4, "tie_word_embeddings": True},
}  # fmt: skip
MOMENTS = {"step": ("gather", "loss", "backward"), "update": ("update",)}  # of the plan


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        reshard: FSDP2: whether blocks are freed between forward and backward pass.
    """

    engine: str
    processes: int
    model: str = "llama-34M"
    length: int = 256
    accumulation: int = 1
    checkpointing: bool = False
    quantization: str = "none"
    reshard: bool = True
    levers: bool = True
    rank: int = 16

    @property
    def label(self) -> str:
        """The cell in short."""
        parts = [self.engine, f"{self.processes} processes", self.model, f"1 x {self.length}"]
        parts += [self.quantization] * (self.quantization != "none") + ["kept whole"] * (not self.reshard)
        parts += [f"accumulate {self.accumulation}"] * (self.accumulation > 1) + ["checkpointing"] * self.checkpointing
        return ", ".join(parts + [f"rank {self.rank}"] * (self.rank != 16) + ["levers off"] * (not self.levers))


def cells() -> list[Cell]:
    """Both engines over what their shares hang on."""
    found = []
    for processes in (2, 4):
        found += [Cell("DDP", processes), Cell("DDP", processes, accumulation=2, rank=64)]
        plain = Cell("FSDP2", processes)
        found += [plain, Cell("FSDP2", processes, "qwen3-32M"), Cell("FSDP2", processes, accumulation=2, rank=64)]
        found += [Cell("FSDP2", processes, checkpointing=True, length=512), Cell("FSDP2", processes, levers=False)]
        found += [Cell("FSDP2", processes, quantization="nf4"), Cell("FSDP2", processes, reshard=False)]
    return found


def config_of(cell: Cell) -> dict[str, Any]:
    """The accelerate config."""
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "use_cpu": True, "num_machines": 1,
        "num_processes": cell.processes, "main_process_port": 0,
    }  # fmt: skip
    if cell.engine == "FSDP2":
        config |= {"distributed_type": "FSDP", "fsdp_config": {
            "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_offload_params": False,
            "fsdp_reshard_after_forward": cell.reshard, "fsdp_cpu_ram_efficient_loading": False,
            "fsdp_state_dict_type": "FULL_STATE_DICT",
        }}  # fmt: skip
    return config


def measure(cell: Cell, bases: Path) -> dict[str, Any]:
    """GiB by moment of this process, planned and measured; one of several that train together."""
    import memory_grid
    import torch
    from transformers import TrainerCallback
    from trl import SFTConfig

    from lorasmith import hardware, models
    from lorasmith.engine import this_engine
    from lorasmith.memory.plans import make_plan
    from lorasmith.memory.weights import GIB
    from lorasmith.recipe import Recipe
    from lorasmith.runs import settings
    from lorasmith.runs.watch import Watch

    memory_grid.SMALL.update(MODELS)
    one = memory_grid.Cell(
        cell.model, cell.quantization, cell.length, 1, cell.accumulation, cell.checkpointing, levers=cell.levers,
        rank=cell.rank,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = memory_grid.config_of(cell.model)
        (folder / "out").mkdir()
        wanted = memory_grid.recipe_of(one, folder)
        wanted["model"]["name"] = str(bases / cell.model)
        wanted["run"]["effective_batch"] *= cell.processes
        wanted["trainer"]["max_steps"] = UPDATES
        recipe = Recipe.model_validate(wanted)
        machine = hardware.find_hardware(use_cpu=True)
        tokenizer, _ = models.load_tokenizer(recipe.model, ROOT / "quickstart/base")
        train, _ = memory_grid.rows_of(one, UPDATES * cell.processes)
        known = memory_grid.plan_rows(one, train)
        target = memory_grid.a_machine("cpu")
        plan = make_plan(recipe, memory_grid.shape_of(config), known, target, engine=this_engine())
        model = models.load_base_model(recipe.model, "float32", recipe.model.attention, "cpu", weight_cache=False)
        trained = settings.make_config(SFTConfig, recipe, machine)
        base = {"name": recipe.model.name, "revision": None, "folder": recipe.model.name}
        rows = type("Rows", (), {"train": train, "eval": [], "fingerprint": "0" * 64})
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        loaded: list[int] = []
        known_bytes: list[int] = []

        class Measured(TrainerCallback):
            """Begins once the model is shared out."""

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                loaded.append(held_bytes(kwargs["model"]))
                profile.start()

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                known_bytes.append(live_bytes())
                self.mark = torch.profiler.record_function("moment update")
                self.mark.__enter__()

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                self.mark.__exit__(None, None, None)

            def on_train_end(self, *_: Any, **__: Any) -> None:
                profile.stop()

        watch = Watch(folder / "out", machine)
        _, trainer = memory_grid.script().make_trainer(
            recipe, trained, base, model, tokenizer, [], rows, [watch, Measured()]
        )
        del model
        compute_loss = trainer.compute_loss

        def counted_first(*args: Any, **kwargs: Any) -> Any:
            known_bytes.append(live_bytes())
            return compute_loss(*args, **kwargs)

        trainer.compute_loss = counted_first
        trainer.training_step = marked(trainer.training_step, "moment step")
        trainer.train()
    found = {"loaded": loaded[0]} | peaks(profile, known_bytes)
    known = planned(plan.memory)
    return {
        "planned_gib": {name: round(known[name] / GIB, 5) for name in found},
        "measured_gib": {name: round(size / GIB, 5) for name, size in found.items()},
        "parts_mib": {
            moment: {part: round(size / 2**20, 2) for part, size in parts.items()}
            for moment, parts in plan.memory.moments.items()
        },
    }


def planned(memory: Any) -> dict[str, int]:
    """Bytes by moment, DDP's buckets left out."""
    buckets = memory.moments["update"].get("buckets", 0)
    found = {name: max(memory.at(one) for one in of if one in memory.moments) - buckets for name, of in MOMENTS.items()}
    return found | {"loaded": memory.at("loaded")}


def marked(call: Any, name: str) -> Any:
    """A method whose time is found in the profile."""
    import torch

    def inside(*args: Any, **kwargs: Any) -> Any:
        with torch.profiler.record_function(name):
            return call(*args, **kwargs)

    return inside


def held_bytes(model: Any) -> int:
    """Bytes of what this process has of a model, with quantization constants and buffers, each storage once."""
    import torch
    from torch.distributed.tensor import DTensor

    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        for one in (state, getattr(state, "state2", None)):
            tensors += [getattr(one, name, None) for name in ("absmax", "code", "offset")]
    local = [one.to_local() if isinstance(one, DTensor) else one for one in tensors if isinstance(one, torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in local}.values())


def live_bytes() -> int:
    """Bytes of every tensor that Python knows of, each storage once; no others are held between two steps.

    DDP's buckets are not among them.
    """
    import gc

    import torch

    sizes = {}
    for one in gc.get_objects():
        if not isinstance(one, torch.Tensor) or type(one).__name__ in ("DTensor", "FakeTensor"):
            continue
        for tensor in (one, one.grad if one.is_leaf else None):  # torch alone knows of a gradient until it is asked
            if tensor is not None:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def peaks(profile: Any, known: list[int]) -> dict[str, int]:
    """The most bytes at any time of each moment.

    Args:
        known: Bytes at the start of each moment, in their order. What gloo's threads let go is no event, so the sum is
            set right there, and wherever a block is handed out whose address was still taken.
    """
    results = profile.profiler.kineto_results
    moments = [one for one in results.events() if one.name().startswith("moment ")]
    starts = sorted((one.start_ns(), one.end_ns(), one.name().removeprefix("moment ")) for one in moments)
    changes = sorted(allocations(results.experimental_event_tree()))
    found: dict[str, int] = {}
    for (start, end, name), now in zip(starts, known, strict=True):
        taken: dict[int, int] = {}
        for when, address, size in changes:
            if not start <= when <= end:
                continue
            before = taken.pop(address, 0)
            now += size - before if size > 0 else size
            if size > 0:
                taken[address] = size
            found[name] = max(found.get(name, 0), now)
    return found


def allocations(events: list[Any]) -> Any:
    """Time, address and bytes of what was handed out, less than 0 where it was given back, in a tree of events."""
    import torch

    for one in events:
        if one.tag == torch._C._profiler._EventType.Allocation:
            yield one.start_time_ns, one.extra_fields.ptr, one.extra_fields.alloc_size
        yield from allocations(one.children)


def make_bases(folder: Path) -> None:
    """The models, of random weights, on the disk."""
    import memory_grid
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    memory_grid.SMALL.update(MODELS)
    for name in MODELS:
        torch.manual_seed(0)
        config = AutoConfig.for_model(**memory_grid.config_of(name))
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / name)


def run(cells: list[Cell], bases: Path) -> list[dict[str, Any]]:
    """Cells of one accelerate config, in one launch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(yaml.safe_dump(config_of(cells[0])))
        (folder / "cells.json").write_text(json.dumps([asdict(cell) for cell in cells]))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(folder / "config.yaml")]
        command += [str(Path(__file__).resolve()), "--inside", name, str(bases)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1800)
        ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    if done.returncode != 0 or len(ranks) != 2:
        raise RuntimeError(f"{cells[0].label}: {done.stderr[-6000:]}")
    return [compared(cell, both) for cell, both in zip(cells, zip(*ranks, strict=True), strict=True)]


def compared(cell: Cell, ranks: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A cell with its errors, of the process that held most."""
    largest = {name: max(one["measured_gib"][name] for one in ranks) for name in ranks[0]["measured_gib"]}
    planned = ranks[0]["planned_gib"]
    errors = {name: round(planned[name] / largest[name] - 1, 4) for name in planned}
    peak = round(max(planned.values()) / max(largest.values()) - 1, 4)
    return {
        **asdict(cell), "label": cell.label, "planned_gib": planned, "measured_gib": largest, "errors": errors,
        "peak_error": peak,
    }  # fmt: skip


def inside(folder: Path, bases: Path) -> None:
    """One process of a launch."""
    os.chdir(ROOT)
    from lorasmith.runs.ending import quiet

    quiet()
    wanted = [Cell(**one) for one in json.loads((folder / "cells.json").read_text())]
    found = [measure(cell, bases) for cell in wanted]
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank in (0, world - 1):
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))


def line(one: dict[str, Any]) -> str:
    """A cell's figures."""
    planned, measured = one["planned_gib"], one["measured_gib"]
    figures = [f"{k} {planned[k] * 1024:.1f} / {measured[k] * 1024:.1f} MiB {e:+.1%}" for k, e in one["errors"].items()]
    return f"{one['label']}: {', '.join(figures)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cells whose label contains this; nothing is written")
    parser.add_argument("--inside", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    if arguments.inside:
        inside(*arguments.inside)
        return
    import memory_grid

    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells():
        if arguments.only in cell.label:
            groups.setdefault((cell.engine, cell.processes, cell.reshard, cell.quantization), []).append(cell)
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        make_bases(Path(name))
        for group in groups.values():
            for one in run(group, Path(name)):
                done.append(one)
                print(line(one), flush=True)
    errors = [one["peak_error"] for one in done]
    summary = {
        "cells": len(done),
        "most_too_low": min(errors),
        "most_too_high": max(errors),
        "mean_absolute": round(sum(map(abs, errors)) / len(errors), 4),
    }
    print(json.dumps(summary))
    if not arguments.only:
        report = {"machine": memory_grid.machine_line("cpu"), "summary": summary, "cells": done}
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
