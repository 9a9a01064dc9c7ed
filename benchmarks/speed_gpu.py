"""How fast on a GPU: sft.py's trainer against trl's, with Liger, and Unsloth, on random weights made in place.

    python benchmarks/speed_gpu.py [--seconds 170]      # writes benchmarks/speed_gpu.json; part of `make gpu-check`

Cells stand in order of importance and none is begun when the time is over. All contenders of a cell have the same rows
and the same memory, a cap that stands for a card of that size. Ours takes what its plan chooses for the card, with all
levers of the recipe's `speed:` on, and in one cell with each off in turn. trl's is set by hand: bfloat16 weights, no
padding, and of its memory settings the quickest that fits. Tokens/s leave padding and the first two updates out.
"""

import argparse
import gc
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).parent))
import memory_grid

LLAMA_1B, LLAMA_8B = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"
OURS, TRL, LIGER, UNSLOTH = "lorasmith", "trl, best by hand", "trl with Liger", "Unsloth"
WARM_UP, TIMED = 2, 4  # updates
# Of trl's memory settings the quicker first; the first that fits under the cap is its best.
TRL_SETTINGS: list[dict[str, Any]] = [
    {"gradient_checkpointing": False},
    {"gradient_checkpointing": False, "per_device_train_batch_size": 1},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "per_device_train_batch_size": 1},
]


@dataclass(frozen=True)
class Cell:
    """A model, its rows and its memory."""

    model: str
    quantization: str
    length: int
    cap_gib: float
    batch: int = 4  # rows an update
    mixed: bool = False  # lognormal lengths up to `length`, else all of `length`
    dtype: str = "bfloat16"

    @property
    def label(self) -> str:
        """The cell in short."""
        rows = f"rows of up to {self.length}" if self.mixed else f"rows of {self.length}"
        return f"{self.model.rpartition('/')[2]}, {self.quantization}, {rows}, {self.cap_gib:g} GiB"


def cells(device: str) -> list[tuple[Cell, str]]:
    """Cells with their contenders, the most telling first; toys on a CPU, which try the program."""
    if device == "cpu":
        toy = Cell("llama", "none", 48, 0, batch=2, mixed=True, dtype="float32")
        return [(toy, OURS), (toy, TRL), *((toy, f"{OURS} without {lever}") for lever in levers())]
    qlora = Cell(LLAMA_8B, "nf4", 2048, 24)
    mixed = Cell(LLAMA_1B, "none", 2048, 24, batch=16, mixed=True)
    peers = [LIGER] * has("liger_kernel") + [UNSLOTH] * has("unsloth")
    most = [(cell, name) for cell in (qlora, mixed) for name in (OURS, TRL, *peers)]
    most += [(mixed, f"{OURS} without {lever}") for lever in levers()]
    rest = [
        Cell(LLAMA_8B, "none", 2048, 48), Cell(LLAMA_8B, "nf4", 8192, 24, batch=2), Cell(LLAMA_1B, "none", 8192, 24, batch=2),
        Cell(LLAMA_1B, "nf4", 2048, 8), Cell(LLAMA_8B, "none", 8192, 48, batch=2), Cell(LLAMA_1B, "none", 2048, 24),
        Cell(LLAMA_1B, "nf4", 8192, 8, batch=2),
    ]  # fmt: skip
    return most + [(cell, name) for cell in rest for name in (OURS, TRL, *peers)]


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def levers() -> list[str]:
    """The switches of the recipe's `speed:`."""
    from lorasmith.recipe import Recipe

    section = Recipe.model_fields.get("speed")
    fields = getattr(section.annotation, "model_fields", {}) if section else {}
    return [name for name, one in fields.items() if one.annotation is bool or bool in get_args(one.annotation)]


def measure(cell: Cell, contender: str, device: str) -> dict[str, Any]:
    """Train a cell's updates with one contender; tokens/s, GiB and settings.

    Raises:
        Exception: Whatever the contender fails with; out of memory included.
    """
    free_memory(device)
    rows = rows_of(cell)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if contender.startswith(OURS):
            return ours(cell, contender, rows, folder, device)
        if contender == UNSLOTH:
            return unsloth(cell, rows, folder, device)
        failed = ""
        for settings in TRL_SETTINGS:
            try:
                return trls(cell, rows, folder, device, settings | {"use_liger_kernel": contender == LIGER})
            except RuntimeError as error:  # torch.OutOfMemoryError is one; kept whole it would hold the tensors
                if "out of memory" not in str(error):
                    raise
                failed = str(error)
            free_memory(device)
        raise RuntimeError(failed)


def measure_apart(cell: Cell, contender: str, device: str) -> dict[str, Any]:
    """What `measure` finds in a process of its own: Liger and Unsloth change the libraries under the others."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "found.json"
        command = [sys.executable, __file__, "--alone", contender, "--cell", cell.label, "--device", device]
        free_memory(device)
        done = subprocess.run([*command, "--out", str(path)], capture_output=True, text=True, timeout=150)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return json.loads(path.read_text())


def ours(cell: Cell, contender: str, rows: list[Any], folder: Path, device: str) -> dict[str, Any]:
    """sft.py's own trainer with what its plan chooses for a card of the cell's size."""
    from trl import SFTConfig

    from lorasmith import hardware, models
    from lorasmith.memory import machine
    from lorasmith.memory.plans import make_plan
    from lorasmith.memory.setting import Rows
    from lorasmith.recipe import Recipe
    from lorasmith.runs import settings

    config, twin = config_of(cell, folder), grid_cell(cell)
    values = memory_grid.recipe_of(twin, folder)
    values["run"] = {"effective_batch": cell.batch}
    values["trainer"] |= {"max_steps": WARM_UP + TIMED, "max_length": cell.length, "lr_scheduler_type": "constant"}
    lever = contender.partition(" without ")[2]
    if lever:
        values["speed"] = {lever: False}
    recipe = Recipe.model_validate(values)
    lengths = [len(row.input_ids) for row in rows]
    known = Rows(lengths, len(lengths), max(lengths), max(row.supervised for row in rows), 0, "made up")
    card = machine.a_card(cell.cap_gib) if cell.cap_gib else memory_grid.a_machine(device)
    chosen = make_plan(recipe, memory_grid.shape_of(config), known, card).setting
    recompute = {"none": False, "all": True, "offload": "offload"}[chosen.checkpointing]
    run = recipe.run.model_copy(update={"micro_batch": chosen.micro_batch, "gradient_checkpointing": recompute})
    recipe = recipe.model_copy(update={"run": run})
    (folder / "out").mkdir()
    tokenizer, _ = models.load_tokenizer(recipe.model, memory_grid.ROOT / "quickstart/base")
    trained = settings.make_config(SFTConfig, recipe, hardware.find_hardware(use_cpu=device == "cpu"))
    base = {"name": str(folder / "model"), "revision": None, "folder": str(folder / "model")}
    sets = type("Sets", (), {"train": rows, "eval": [], "fingerprint": "0" * 64})
    model = memory_grid.make_model(twin, recipe, folder / "model", device)
    free_memory(device)
    with capped(cell, device):
        clock = make_clock(device)
        _, trainer = memory_grid.script().make_trainer(recipe, trained, base, model, tokenizer, [], sets, [clock])
        del model
        found = timed(trainer, clock, rows, device)
    return found | {"micro_batch": chosen.micro_batch, "checkpointing": chosen.checkpointing}


def trls(cell: Cell, rows: list[Any], folder: Path, device: str, settings: dict[str, Any]) -> dict[str, Any]:
    """trl's SFTTrainer on the same rows."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from lorasmith.data.prepare import as_dataset
    from lorasmith.recipe import Recipe

    config_of(cell, folder)
    flash = has("flash_attn") and device == "cuda"
    arguments: dict[str, Any] = {"per_device_train_batch_size": cell.batch} | settings
    if cell.mixed:  # packing pays with a kernel that knows where rows end; else rows of like length stand together
        arguments |= (
            {"packing": True, "per_device_train_batch_size": 1}
            if flash
            else {"train_sampling_strategy": "group_by_length"}
        )
        # 16 rows of a lognormal mean of about 400 tokens fill 4 packs of 2048.
        arguments["gradient_accumulation_steps"] = 4 if flash else 1
    if not (cell.mixed and flash):
        arguments["gradient_accumulation_steps"] = cell.batch // arguments["per_device_train_batch_size"]
    config = SFTConfig(
        str(folder / "out"), max_steps=WARM_UP + TIMED, learning_rate=2e-4, lr_scheduler_type="constant",
        max_length=cell.length, logging_steps=1, save_strategy="no", report_to="none", bf16=cell.dtype == "bfloat16",
        use_cpu=device == "cpu", disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": not arguments.get("packing")},
        **arguments,
    )  # fmt: skip
    recipe = Recipe.model_validate(memory_grid.recipe_of(grid_cell(cell), folder))
    if flash:
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"attention": "flash_attention_2"})})
    model = memory_grid.make_model(grid_cell(cell), recipe, folder / "model", device)
    free_memory(device)
    with capped(cell, device):
        clock = make_clock(device)
        trainer = SFTTrainer(
            model, config, train_dataset=as_dataset(rows), peft_config=lora(), callbacks=[clock],
            processing_class=AutoTokenizer.from_pretrained(memory_grid.ROOT / "quickstart/base"),
        )  # fmt: skip
        del model
        found = timed(trainer, clock, rows, device)
    kept = {"per_device_train_batch_size", "gradient_checkpointing", "packing", "train_sampling_strategy"}
    return found | {key: value for key, value in arguments.items() if key in kept}


def unsloth(cell: Cell, rows: list[Any], folder: Path, device: str) -> dict[str, Any]:
    """Unsloth's own way, as far as its README tells it, in a process that imported it first."""
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    from lorasmith.data.prepare import as_dataset
    from lorasmith.recipe import Recipe

    config_of(cell, folder)
    plain = replace(grid_cell(cell), quantization="none")
    recipe = Recipe.model_validate(memory_grid.recipe_of(plain, folder))
    memory_grid.make_model(plain, recipe, folder / "model", device).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(memory_grid.ROOT / "quickstart/base").save_pretrained(folder / "model")
    free_memory(device)
    model, tokenizer = FastLanguageModel.from_pretrained(
        str(folder / "model"), max_seq_length=cell.length, load_in_4bit=cell.quantization == "nf4"
    )
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, lora_dropout=0, target_modules=names)
    clock = make_clock(device)
    config = SFTConfig(
        str(folder / "out"), max_steps=WARM_UP + TIMED, learning_rate=2e-4, lr_scheduler_type="constant",
        per_device_train_batch_size=cell.batch, logging_steps=1, save_strategy="no", report_to="none", bf16=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    with capped(cell, device):
        trainer = SFTTrainer(
            model, config, train_dataset=as_dataset(rows), processing_class=tokenizer, callbacks=[clock]
        )
        return timed(trainer, clock, rows, device)


def timed(trainer: Any, clock: Any, rows: list[Any], device: str) -> dict[str, Any]:
    """Train; tokens/s behind the warm-up, and the allocator's peak."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = [b - a for a, b in itertools.pairwise(clock.ends[WARM_UP - 1 :])]
    seen = [event["num_tokens"] for event in trainer.state.log_history if "num_tokens" in event]
    # Unsloth's trainer may not count; every update of its has the same number of rows.
    mean = sum(len(row.input_ids) for row in rows) / (WARM_UP + TIMED)
    tokens = seen[-1] - seen[WARM_UP - 1] if len(seen) > WARM_UP else mean * len(seconds)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    return {
        "tokens_per_second": round(tokens / sum(seconds), 1),
        "seconds": [round(one, 4) for one in seconds],
        "peak_gib": None if peak is None else round(peak, 3),
        "losses": [round(loss, 4) for loss in losses],
    }


def make_clock(device: str) -> Any:
    """A callback that notes when each update has really ended."""
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    return Clock()


def capped(cell: Cell, device: str) -> Any:
    """A context in which torch may use the memory of the cell's card, less what CUDA itself takes."""
    from contextlib import contextmanager

    import torch

    from lorasmith.memory.peak import CUDA_CONTEXT
    from lorasmith.memory.weights import GIB

    @contextmanager
    def cap() -> Any:
        if device == "cpu":
            yield
            return
        share = (cell.cap_gib * GIB * 0.98 - CUDA_CONTEXT) / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    return cap()


def free_memory(device: str) -> None:
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def rows_of(cell: Cell) -> list[Any]:
    """Random ids for all updates; the first quarter of a row is its prompt and not trained."""
    from array import array

    import numpy as np

    from lorasmith.data.render import TokenRow

    random = np.random.default_rng(0)
    count = cell.batch * (WARM_UP + TIMED)
    lengths = [cell.length] * count
    if cell.mixed:
        lengths = [int(n) for n in np.clip(random.lognormal(5.6, 0.8, count), 16, cell.length)]
    rows = []
    for i, length in enumerate(lengths):
        ids = array("i", random.integers(3, 900, length).tolist())
        labels = array("i", [-100]) * (length // 4) + ids[length // 4 :]
        rows.append(TokenRow(f"made:{i}", ids, labels))
    return rows


def config_of(cell: Cell, folder: Path) -> dict[str, Any]:
    """The model's config, written into folder/model."""
    config = memory_grid.config_of(cell.model)
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text(json.dumps(config))
    return config


def grid_cell(cell: Cell) -> memory_grid.Cell:
    return memory_grid.Cell(cell.model, cell.quantization, cell.length, 1, cell.batch, dtype=cell.dtype)


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def run(device: str, seconds: float, path: Path | None = None) -> list[dict[str, Any]]:
    """All cells that the time allows; each is written as soon as it is known."""
    start, found = time.perf_counter(), []
    for cell, contender in cells(device):
        one: dict[str, Any] = {"cell": cell.label, "contender": contender}
        if time.perf_counter() - start > seconds:
            found.append(one | {"result": "not measured: the time was over"})
            continue
        try:
            how = measure_apart if contender in (LIGER, UNSLOTH) else measure
            one |= how(cell, contender, device) | {"result": "trained"}
        except Exception as error:  # one contender must not cost the others, and an out-of-memory is a finding
            one["result"] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        print(json.dumps(one), flush=True)
        found.append(one)
        if path:
            path.write_text(json.dumps(found, indent=1) + "\n")
    if path:
        path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: list[dict[str, Any]] | None) -> str:
    """A Markdown table of the cells."""
    lines = ["| cell | | tokens/s | peak memory | result |", "|---|---|---|---|---|"]
    for one in found or []:
        speed = f"{one['tokens_per_second']:,.0f}" if "tokens_per_second" in one else ""
        peak = f"{one['peak_gib']:.2f} GiB" if one.get("peak_gib") else ""
        lines.append(f"| {one['cell']} | {one['contender']} | {speed} | {peak} | {one['result']} |")
    return "\n".join(lines) if found else "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=170, help="no new cell is begun after this long")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "speed_gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--alone", metavar="CONTENDER", help=argparse.SUPPRESS)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(memory_grid.ROOT)
    if arguments.alone:
        if arguments.alone == UNSLOTH:
            importlib.import_module("unsloth")  # before the libraries that it changes
        cell = next(cell for cell, _ in cells(arguments.device) if cell.label == arguments.cell)
        arguments.out.write_text(json.dumps(measure(cell, arguments.alone, arguments.device)))
        return
    from lorasmith.runs.ending import quiet

    quiet()
    print(table(run(arguments.device, arguments.seconds, arguments.out)))


if __name__ == "__main__":
    main()
