"""What each lever of `speed:` is worth: a training step with all of them, with each switched off, and with none.

    python benchmarks/levers.py [--repeats 3] [--layers 6]      # about 5 minutes

Writes benchmarks/levers.json and the table in docs/speed.md.

A random Llama as wide as one of 100M parameters, with six blocks and a vocabulary of 16,384, in this machine's own dtype;
micro-batches of four rows. The
variants take turns within one process, so that a slow spell hits all, and each is told by its fastest step. Memory is
that of the tensors of a step, added up from the profiler's events. Shared prompts are measured on rows that begin with
the same 256 tokens, frozen blocks on an adapter in the upper quarter of the blocks whose rows come for the second time.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
MARKS = ("<!-- levers -->", "<!-- /levers -->")
ROWS, MICRO, COMMON = 16, 4, 256
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KEYS = ("padding_free", "chunked_loss", "fused_lora")
CASES: dict[str, dict[str, Any]] = {
    "rows of unlike length": {"levers": KEYS},
    "rows that begin with the same 256 tokens": {"levers": ("shared_prompts",), "common": COMMON},
    "adapter in the upper quarter, rows seen before": {"levers": ("frozen_cache",), "upper": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--no-write", dest="write", action="store_false")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    from lorasmith.runs.ending import quiet

    quiet()
    report: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} threads", "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name) / "model", arguments.layers)
        for case, settings in CASES.items():
            report["cases"][case] = measure(Path(name), settings, arguments)
            print(table({case: report["cases"][case]}), flush=True)
    if arguments.write:
        (ROOT / "benchmarks/levers.json").write_text(json.dumps(report, indent=1) + "\n")
        page = ROOT / "docs/speed.md"
        page.write_text(with_table(page.read_text(), report))


def make_model(folder: Path, layers: int) -> None:
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_key_value_heads": 12}
    ids = {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None, "tie_word_embeddings": True}
    LlamaForCausalLM(LlamaConfig(vocab_size=16_384, num_hidden_layers=layers, **sizes, **ids)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(ROOT / "quickstart/base" / file, folder)


def measure(folder: Path, settings: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Fastest pass over the rows of each variant in seconds, the tokens in it, and the most memory of a micro-batch."""
    variants = {"all": {}} | {f"{key} off": {key: False} for key in settings["levers"]}
    if len(settings["levers"]) > 1:
        variants["none"] = dict.fromkeys(settings["levers"], False)
    rows = some_rows(settings.get("common", 0))
    steps = {name: prepare(folder, rows, speed, settings, arguments.layers) for name, speed in variants.items()}
    found: dict[str, Any] = {name: {"seconds": float("inf"), "loss": step()} for name, step in steps.items()}
    for _ in range(arguments.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            found[name]["seconds"] = min(found[name]["seconds"], time.perf_counter() - start)
    tokens = sum(len(row.input_ids) for row in rows)
    for name, step in steps.items():
        found[name] |= {"tokens_per_second": round(tokens / found[name]["seconds"], 1), "gib": round(peak(step), 3)}
    return found


def prepare(folder: Path, rows: list[Any], speed: dict[str, bool], settings: dict[str, Any], layers: int) -> Any:
    """A function that trains on all rows once, without updating, and gives the summed loss."""
    import torch
    from memory_grid import script
    from trl import SFTConfig

    from lorasmith import hardware, models
    from lorasmith.recipe import Recipe
    from lorasmith.runs import settings as run_settings

    adapter: dict[str, Any] = {"rank": 16, "alpha": 32}
    if settings.get("upper"):
        adapter |= {"target_modules": LINEAR, "options": {"layers_to_transform": list(range(3 * layers // 4, layers))}}
    machine = hardware.find_hardware(use_cpu=True)
    dtype, _ = hardware.choose_dtype("auto", machine)
    recipe = Recipe.model_validate(
        {
            "model": {"name": str(folder / "model"), "dtype": dtype, "attention": "sdpa"},
            "adapter": adapter,
            "data": {"train": "made up"},
            "run": {"effective_batch": ROWS, "micro_batch": MICRO, "gradient_checkpointing": False},
            "speed": speed,
            "output_dir": str(folder / "out"),
            "trainer": {"max_length": 1024, "save_strategy": "no"},
        }
    )
    config = run_settings.make_config(SFTConfig, recipe, machine)
    tokenizer, _ = models.load_tokenizer(recipe.model)
    base = models.load_base_model(recipe.model, dtype, "sdpa", "cpu")
    parts = type("Rows", (), {"train": rows, "eval": [], "fingerprint": "0" * 64})
    identity = {"name": str(folder / "model"), "revision": None, "folder": str(folder / "model")}
    _, trainer = script().make_trainer(recipe, config, identity, base, tokenizer, [], parts, [])
    trained = sum(row.supervised for row in rows)
    ordered = sorted(({"input_ids": r.input_ids, "labels": r.labels} for r in rows), key=lambda r: -len(r["input_ids"]))
    batches = [trainer.data_collator(ordered[start : start + MICRO]) for start in range(0, ROWS, MICRO)]

    def step() -> float:
        trainer.model.zero_grad()
        return sum(float(trainer.training_step(trainer.model, dict(one), torch.tensor(trained))) for one in batches)

    return step


def some_rows(common: int) -> list[Any]:
    """Rows of lognormal lengths, 40 to 700 tokens, their first third untrained; or 64 to 128 behind a common beginning."""
    from lorasmith.data.render import TokenRow

    draw, rows = random.Random(0), []
    begin = draw.choices(range(3, 900), k=common)
    for i in range(ROWS):
        own = draw.randint(64, 128) if common else max(40, min(700, int(draw.lognormvariate(5.3, 0.8))))
        ids = begin + draw.choices(range(3, 900), k=own)
        untrained = common + own // 3
        labels = [-100] * untrained + ids[untrained:]
        rows.append(TokenRow(f"made:{i}", array("i", ids), array("i", labels)))
    return rows


def peak(step: Any) -> float:
    """GiB of the tensors that a pass makes, at most at once."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 2**30


def with_table(page: str, report: dict[str, Any]) -> str:
    """A page with the table between its marks."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{table(report['cases'])}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def table(cases: dict[str, Any]) -> str:
    """The cases as a Markdown table, speeds and memory over those with all levers."""
    lines = ["| | levers | tokens/s | time | memory of a step |", "|---|---|---|---|---|"]
    for case, found in cases.items():
        whole = found["all"]
        for name, one in found.items():
            ratio, memory = one["seconds"] / whole["seconds"], one["gib"] / whole["gib"]
            lines.append(
                f"| {case} | {name} | {one['tokens_per_second']:,.0f} | {ratio:.2f} x | {one['gib']:.2f} GiB, {memory:.2f} x |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
