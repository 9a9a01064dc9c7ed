"""The plan's memory against what is measured, over a grid of models, quantizations, row lengths and settings.

    python benchmarks/memory_grid.py [--device cpu|cuda] [--only TEXT]     # writes benchmarks/memory_grid_<device>.json

Every cell makes a model with random weights, attaches an adapter and trains two updates through the script's own
trainer. On a CPU the models are small, and what torch's allocator hands out is added up from the profiler's events; on a
GPU they have real shapes, and the allocator's own peak is read. Errors are given in both directions.
"""

import argparse
import gc
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SMALL = {
    "llama": {"model_type": "llama", "intermediate_size": 704, "num_key_value_heads": 4},
    "llama-wide": {"model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    "qwen3": {"model_type": "qwen3", "head_dim": 64, "intermediate_size": 768, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "gemma3": {"model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64,
               "intermediate_size": 1024, "sliding_window": 4096, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 32, "num_key_value_heads": 4, "intermediate_size": 704},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 4, "intermediate_size": 704},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 32, "num_key_value_heads": 4, "intermediate_size": 704,
                  "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256},
    "gpt2": {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 4096, "vocab_size": 8192},
}  # fmt: skip
COMMON = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 8192}


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    model: str
    quantization: str = "none"
    length: int = 512
    micro_batch: int = 1
    accumulation: int = 1
    checkpointing: bool | int = False
    optim: str = "adamw_torch_fused"
    dtype: str = "float32"
    method: str = "lora"
    rank: int = 16
    dropout: float = 0.0
    padded: bool = False
    evaluate: int = 0  # tokens of the evaluation rows
    offload: bool = False
    levers: bool = True  # of the recipe's `speed:`

    @property
    def label(self) -> str:
        """What differs from a plain cell, in short."""
        parts = [self.model, self.quantization, self.dtype, f"{self.micro_batch} x {self.length}"]
        parts += [f"accumulate {self.accumulation}"] * (self.accumulation > 1)
        parts += [f"checkpointing {int(self.checkpointing)}"] * bool(self.checkpointing) + ["offload"] * self.offload
        parts += ["levers off"] * (not self.levers)
        parts += [self.optim] * (self.optim != "adamw_torch_fused") + [self.method] * (self.method != "lora")
        parts += [f"rank {self.rank}"] * (self.rank != 16) + [f"dropout {self.dropout:g}"] * (self.dropout > 0)
        return ", ".join(parts + ["padded"] * self.padded + [f"evaluated on {self.evaluate}"] * bool(self.evaluate))


def cpu_cells() -> list[Cell]:
    """Small models over everything the plan counts on a CPU."""
    base = Cell("llama")
    cells = [Cell(model, length=length) for model in SMALL for length in (256, 1024)]
    cells += [Cell(model, length=1024, levers=False) for model in SMALL]
    cells += [replace(base, levers=False, quantization=kind, length=512) for kind in ("nf4", "int8")]
    cells += [replace(base, levers=False, micro_batch=4, padded=True), replace(base, checkpointing=2, micro_batch=4)]
    cells += [replace(base, checkpointing=3, length=1024), Cell("qwen3", "nf4", 512, 4, checkpointing=4)]
    cells += [replace(base, quantization=kind, length=length) for kind in ("nf4", "int8") for length in (512, 2048)]
    cells += [Cell(model, "nf4", 512, 2) for model in ("qwen3", "gemma3", "llama-wide")]
    cells += [
        replace(base, checkpointing=True, micro_batch=size, quantization=kind)
        for size in (1, 4)
        for kind in ("none", "nf4")
    ]
    cells += [Cell("qwen3", length=1024, checkpointing=True), Cell("gemma3", length=1024, checkpointing=True)]
    cells += [
        replace(base, micro_batch=4),
        replace(base, micro_batch=4, padded=True),
        replace(base, accumulation=4, rank=128),
    ]
    cells += [replace(base, optim=name, rank=128) for name in ("adamw_torch", "adamw_8bit", "sgd")]
    cells += [
        replace(base, method="dora"),
        replace(base, method="dora", quantization="nf4"),
        replace(base, dropout=0.1),
    ]
    cells += [replace(base, dtype="bfloat16", quantization=kind) for kind in ("none", "nf4", "int8")]
    cells += [Cell("qwen3", dtype="bfloat16", length=1024, checkpointing=True)]
    cells += [
        replace(base, evaluate=512, micro_batch=4),
        replace(base, evaluate=4096, length=256),
        replace(base, evaluate=4096, length=256, micro_batch=2, quantization="nf4"),
    ]
    return cells


def cuda_cells() -> list[Cell]:
    """Real shapes over quantizations, row lengths, micro-batches, checkpointing and optimizers."""
    models = {
        "Qwen/Qwen3-0.6B": 8192, "Qwen/Qwen3-1.7B": 8192, "Qwen/Qwen3-4B": 8192, "Qwen/Qwen3-8B": 4096,
        "meta-llama/Llama-3.2-1B-Instruct": 8192, "meta-llama/Llama-3.1-8B-Instruct": 4096, "google/gemma-3-1b-it": 4096,
    }  # fmt: skip
    cells = []
    for model, longest in models.items():
        plain = Cell(model, dtype="bfloat16")
        cells += [replace(plain, quantization=kind, checkpointing=True) for kind in ("none", "int8", "nf4")]
        cells += [replace(plain, quantization="nf4", length=length, checkpointing=True) for length in (2048, longest)]
        cells += [replace(plain, quantization="nf4", length=1024, micro_batch=2)]
    small = Cell("Qwen/Qwen3-0.6B", dtype="bfloat16")
    cells += [replace(small, micro_batch=size, length=1024) for size in (1, 4, 8)]
    cells += [replace(small, optim=name, rank=256) for name in ("adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit")]
    cells += [replace(small, method="dora"), replace(small, dropout=0.05), replace(small, micro_batch=4, padded=True)]
    cells += [replace(small, checkpointing=True, offload=True, length=4096), replace(small, accumulation=4)]
    cells += [replace(small, evaluate=4096, checkpointing=True, micro_batch=4, length=2048)]
    return cells


def measure(cell: Cell, device: str, cap: float = 1.0) -> dict[str, Any]:
    """Train two updates of a cell; GiB of live tensors, predicted and measured, and the tokens/s of the run.

    Args:
        cap: Share of a GPU's memory that torch may use while training.
    """
    import torch
    from trl import SFTConfig

    from lorasmith import hardware, models
    from lorasmith.memory.plans import make_plan
    from lorasmith.memory.weights import GIB
    from lorasmith.recipe import Recipe
    from lorasmith.runs import settings
    from lorasmith.runs.watch import Watch
    from lorasmith.speed.recompute import RecomputeOneIn

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = config_of(cell.model)
        folder.joinpath("model").mkdir()
        (folder / "model/config.json").write_text(json.dumps(config))
        recipe = Recipe.model_validate(recipe_of(cell, folder))
        machine = hardware.find_hardware(use_cpu=device == "cpu")
        (folder / "out").mkdir()
        tokenizer, _ = models.load_tokenizer(recipe.model, ROOT / "quickstart/base")
        train, evaluation = rows_of(cell, 2)
        plan = make_plan(recipe, shape_of(config), plan_rows(cell, train), a_machine(device))
        model = make_model(cell, recipe, folder / "model", device)
        trained = settings.make_config(SFTConfig, recipe, machine)
        base = {"name": str(folder / "model"), "revision": None, "folder": str(folder / "model")}
        rows = type("Rows", (), {"train": train, "eval": evaluation, "fingerprint": "0" * 64})
        watch = Watch(folder / "out", machine)
        every = [RecomputeOneIn(cell.checkpointing)] * (cell.checkpointing > 1)
        adapted, trainer = script().make_trainer(recipe, trained, base, model, tokenizer, [], rows, [*every, watch])
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(cap)
        try:
            measured = measured_peak(adapted, trainer, device)
        finally:
            if device == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0)
    predicted = plan.memory.tensors
    return {
        **asdict(cell),
        "label": cell.label,
        "predicted_gib": round(predicted / GIB, 4),
        "measured_gib": round(measured["tensors"] / GIB, 4),
        "error": round(predicted / measured["tensors"] - 1, 4),
        "moment": plan.memory.moment,
        **{key: round(value / GIB, 4) for key, value in measured.items() if key != "tensors"},
        "tokens_per_second": round(watch.tokens_per_second or 0, 1),
    }


def measured_peak(model: Any, trainer: Any, device: str) -> dict[str, int]:
    """Bytes of live tensors at the peak of a training."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer.train()
        free, total = torch.cuda.mem_get_info()
        peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"tensors": peak, "reserved_gib": reserved, "outside_gib": total - free - torch.cuda.memory_reserved()}
    gc.collect()
    held = held_bytes(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer.train()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"tensors": held + peak}


def held_bytes(model: Any) -> int:
    """Bytes of a model's weights, quantization constants and buffers, each storage once."""
    import torch

    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        for one in (state, getattr(state, "state2", None)):
            tensors += [getattr(one, name, None) for name in ("absmax", "code", "offset")]
        tensors += [getattr(weight, name, None) for name in ("CB", "SCB")]
    stores = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)
    }
    return sum(stores.values())


def make_model(cell: Cell, recipe: Any, folder: Path, device: str) -> Any:
    """A model of random weights: on a CPU saved and loaded as a run loads it, on a GPU made in place for want of time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lorasmith import models

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    dtype = getattr(torch, cell.dtype)
    if device == "cpu":
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        return models.load_base_model(recipe.model, cell.dtype, recipe.model.attention, device)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=recipe.model.attention)
    if cell.quantization != "none":
        quantize_in_place(model, models.quantization_config(cell.quantization, dtype), device)
    return model


def quantize_in_place(model: Any, settings: Any, device: str) -> None:
    """What from_pretrained does with a quantization config, layer by layer on the device."""
    import bitsandbytes as bnb
    import torch
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    weights = {name: module.weight for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    replace_with_bnb_linear(model, modules_to_not_convert=[head], quantization_config=settings)
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            kept = {key: getattr(module.weight, key) for key in ("quant_type", "compress_statistics", "quant_storage")}
            module.weight = bnb.nn.Params4bit(weights.pop(name).data, requires_grad=False, **kept).to(device)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            whole = weights.pop(name).data
            module.weight = bnb.nn.Int8Params(whole.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
    kind = "is_loaded_in_4bit" if settings.load_in_4bit else "is_loaded_in_8bit"
    setattr(model, kind, True)
    model.is_quantized, model.config.quantization_config = True, settings
    model.quantization_method = settings.quant_method


def config_of(model: str) -> dict[str, Any]:
    """A config.json: of the facts kept with the planner, or of a small model with the quickstart's tokenizer."""
    from lorasmith.memory.facts import known_models

    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if model in known_models():
        return {key: value for key, value in known_models()[model].items() if key != "parameters"} | ids
    common = {} if model == "gpt2" else COMMON | {"max_position_embeddings": 4096}
    return common | SMALL[model] | ids


def recipe_of(cell: Cell, folder: Path) -> dict[str, Any]:
    from lorasmith.recipe import Speed

    rows = cell.micro_batch * cell.accumulation
    trainer = {
        "max_length": cell.length,
        "max_steps": 2,
        "optim": cell.optim,
        "save_strategy": "no",
        "logging_steps": 1,
    }
    adapter = {"method": cell.method, "rank": cell.rank, "alpha": 32, "dropout": cell.dropout}
    return {
        "model": {"name": str(folder / "model"), "quantization": cell.quantization, "dtype": cell.dtype, "attention": shape_of(config_of(cell.model)).attention},
        "adapter": adapter,
        "data": {"train": "made up"} | ({"eval_fraction": 0.5} if cell.evaluate else {}),
        "run": {"effective_batch": rows, "micro_batch": cell.micro_batch,
                "gradient_checkpointing": "offload" if cell.offload else cell.checkpointing},
        "speed": {} if cell.levers else dict.fromkeys(Speed.model_fields, False),
        "output_dir": str(folder / "out"),
        "trainer": trainer,
    }  # fmt: skip


def rows_of(cell: Cell, steps: int) -> tuple[list[Any], list[Any]]:
    """Random rows of the cell's length; padded cells have one such row and others of half of it."""
    import numpy as np

    from lorasmith.data.render import TokenRow

    random = np.random.default_rng(0)

    def row(name: str, size: int) -> TokenRow:
        ids = random.integers(3, 900, size).astype(np.int32)
        return TokenRow(place=name, input_ids=ids, labels=ids.copy())

    count = steps * cell.micro_batch * cell.accumulation
    sizes = [cell.length // 2 if cell.padded and i else cell.length for i in range(count)]
    evaluation = [row(f"evaluation:{i}", cell.evaluate) for i in range(cell.micro_batch * bool(cell.evaluate))]
    return [row(f"made:{i}", size) for i, size in enumerate(sizes)], evaluation


def plan_rows(cell: Cell, rows: list[Any]) -> Any:
    from lorasmith.memory.setting import Rows

    lengths = [len(row.input_ids) for row in rows]
    return Rows(lengths, len(rows), cell.length, cell.length, cell.evaluate, "made up")


def shape_of(config: dict[str, Any]) -> Any:
    from lorasmith.memory.shapes import read_shape

    return read_shape(config)


def a_machine(device: str) -> Any:
    """A machine without limits: the plan's figure is wanted, not its verdict."""
    from lorasmith.memory.machine import Machine
    from lorasmith.memory.speed import Rate

    return Machine(device, device, 1, 1 << 60, Rate(1e12, 1e11, "assumed"))


def script() -> Any:
    """scripts/sft.py as a module, for its make_trainer."""
    if "lorasmith_sft_script" not in sys.modules:
        spec = importlib.util.spec_from_file_location("lorasmith_sft_script", ROOT / "scripts/sft.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules["lorasmith_sft_script"] = module
    return sys.modules["lorasmith_sft_script"]


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors in both directions."""
    errors = [cell["error"] for cell in cells]
    return {
        "cells": len(cells),
        "within_5_percent": round(sum(abs(error) <= 0.05 for error in errors) / len(errors), 3),
        "most_too_low": min(errors),
        "most_too_high": max(errors),
        "mean_absolute": round(sum(map(abs, errors)) / len(errors), 4),
    }


def machine_line(device: str) -> str:
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else f"{platform.machine()} CPU, {os.cpu_count()} threads"
    return f"{name}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="only cells whose label contains this; nothing is written")
    parser.add_argument("--minutes", type=float, default=30, help="no new cell is begun after this long")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    from lorasmith.runs.ending import quiet

    quiet()
    cells = [
        cell for cell in (cpu_cells() if arguments.device == "cpu" else cuda_cells()) if arguments.only in cell.label
    ]
    start, done, failed = time.perf_counter(), [], []
    for i, cell in enumerate(cells):
        if time.perf_counter() - start > 60 * arguments.minutes:
            break
        try:
            done.append(measure(cell, arguments.device))
            one = done[-1]
            shown = f"{one['predicted_gib']:.3f} predicted, {one['measured_gib']:.3f} measured, {one['error']:+.1%}"
        except Exception as error:  # one cell must not cost the others
            failed.append(
                {"label": cell.label, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            )
            shown = failed[-1]["error"]
        print(f"{i + 1}/{len(cells)} {cell.label}: {shown}", flush=True)
    report = {"machine": machine_line(arguments.device), "summary": summary(done), "failed": failed, "cells": done}
    print(json.dumps(report["summary"]))
    if not arguments.only:
        out = ROOT / f"benchmarks/memory_grid_{arguments.device}.json"
        out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
