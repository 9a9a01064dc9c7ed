"""Writes docs/memory.md: every shipped recipe against common cards, and the memory grid with its errors.

python docs/make_memory.py > docs/memory.md
"""

import json
import sys
from pathlib import Path
from typing import Any

from lorasmith.data.lengths import sampled_rows
from lorasmith.memory import facts, machine
from lorasmith.memory.lengths import with_length
from lorasmith.memory.methods import METHODS
from lorasmith.memory.plans import make_plan
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.weights import GIB
from lorasmith.recipe import load_recipe
from lorasmith.recipe_method import method_of

ROOT = Path(__file__).parent.parent
CARDS = (8, 12, 16, 24)
INTRODUCTION = """\
# Memory: does it fit?

`python scripts/plan.py RECIPE --gpu 12` answers from the model's config alone, in about a second: no download, no
GPU, no torch. Every training script makes the same plan before it reads the weights, stops with exit code 3 when the
run does not fit, and writes what was planned and what was measured into `run.json`.

- `--gpu auto` (the default) plans for what is free on this machine; `--gpus 2x24` for two cards under every engine, of
  which the fastest that fits is proposed with its accelerate config ([scaling.md](scaling.md)).
- `--max` says the longest row, the largest micro-batch and the largest model of the family that fit.
- `--write` changes a recipe that does not fit by the first of the ways shown, which keeps what is trained if it can.
- `run.micro_batch: auto` and `run.gradient_checkpointing: auto`, the defaults, take the fastest setting that fits at
  the recipe's `run.effective_batch`.

What is counted: the base's weights in their quantization, the adapter with its gradients and optimizer states, what
autograd keeps of each block, recomputation, attention masks, trl's chunked loss, and, on CUDA, half a GiB for CUDA
itself and 3 % of the dynamic part for fragmentation (the last two are assumed until a GPU has measured them). On a
CPU what the process already holds is added. Rows are counted with padding: the worst micro-batch holds the longest.

What a method adds (`lorasmith/memory/methods.py` has it in one place): a pair of answers is two sequences, which stay
in one micro-batch. dpo and kto have a moment more, in which the reference reads the batch while the policy's
activations are held, and a frozen copy of an adapter that is gone on with. orpo scores the preferred answer's prompt
too. reward has one score in the output layer's place. grpo makes its completions itself: the cache of all that are made
at once, each as long as it may be, and some copies of their logits, or what a block holds as it reads their prompts.
How many are made at once is chosen with the micro-batch, and the plan says which share of the time that takes. What
transformers' `generate` holds on a CPU, on small models, is within 5 % of it (`tests/test_plan_grpo.py`).

Classifiers, taggers and answer finders have no logits over the vocabulary; their heads are held twice, as the base has
them and trained. Encoders' dropouts keep what they dropped by, and on a CPU dropped attention is written out, so that
its scores are kept: memory grows with the square of the row. DeBERTa's scores are kept everywhere. Rows are padded to
the longest of their micro-batch. seq2seq counts the encoder's blocks over sources, the decoder's over targets and both
where it reads the source, and all logits of the targets at once with their gradient; evaluation that writes targets
counts the caches of every beam. The longest source and the longest target are taken to meet. bitsandbytes' 8-bit
layers keep their inputs in spite of checkpointing, but for `speed.fused_lora`, and T5's `wo` is never quantized.

Of several processes each is planned by what its engine leaves it (`lorasmith/memory/shares.py`, with the sources): DDP
adds buckets of gradients; FSDP2 divides weights, adapter, gradients and states, and adds what is gathered at once, two
blocks with a third while it is fetched, and the output layer with its buffer; ZeRO adds DeepSpeed's buckets; offload
moves shards and states into the computer's memory, which is then a budget too. A launched run plans for the engine that
its launcher was given.

Speeds come from the last run of the same model and settings on this machine, else from its matrix-product rate
(`python scripts/doctor.py` measures it), else from 30 % of the card's data sheet, which is assumed.
"""


def main() -> None:
    print(INTRODUCTION)
    print("## Every shipped recipe against four cards\n")
    print(
        "Rows as long as a recipe allows, settings chosen by the plan; peak memory of the fastest that fits, and rows"
    )
    print(
        "of a micro-batch, which are pairs but for sft, kto and grpo. Predicted, not yet measured on a GPU. Once more:"
    )
    print("`python scripts/plan.py recipes/sft/NAME.yaml --gpu 8`.\n")
    print("| recipe | " + " | ".join(f"{gib} GiB card" for gib in CARDS) + " |")
    print("|---|" + "---|" * len(CARDS))
    shipped = [path for method in METHODS for path in sorted((ROOT / "recipes" / method).glob("*.yaml"))]
    for path in [ROOT / "recipes/quickstart.yaml", *shipped]:
        print(f"| {path.stem} | " + " | ".join(cell(path, gib) for gib in CARDS) + " |")
    print("\n## Predicted against measured\n")
    print(grid("cpu", "Small models of random weights on a CPU: bytes that torch's allocator handed out"))
    print(grid("cuda", "Real shapes with random weights on a GPU: the allocator's peak"))
    print("## Every method\n")
    print(every_method())
    print("## Classifiers and encoder-decoders\n")
    print(grid("cpu", "Small models of random weights, transformers' own trainer, on a CPU", "task_memory"), end="")


def cell(path: Path, gib: int) -> str:
    """What a card makes of a recipe."""
    method = method_of(path) or "sft"
    recipe = load_recipe(path, ["run.micro_batch=auto"], method)
    shape = read_shape(*facts.find_config(recipe.model.name))
    rows = sampled_rows(with_length(recipe, shape.positions, method)[0], method)
    plan = make_plan(recipe, shape, rows, machine.a_card(gib), method=method)
    if not plan.fits:
        way = f"; {plan.proposals[0].text()}" if plan.proposals else ""
        return f"needs {plan.needed / GIB:.1f}{way}"
    how = plan.setting.checkpointing
    kinds = {"none": "", "all": ", checkpointing", "offload": ", offload"}
    kind = kinds.get(how, f", checkpointing of {how.replace('every', 'one in')}")
    return f"{plan.needed / GIB:.1f} GiB: {plan.micro_batch} rows{kind}"


def every_method() -> str:
    """The runs of every method as a table."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import preference_memory

    command = "`python benchmarks/preference_memory.py`"
    what = "One base of random weights, whole runs of each script in a process of its own"
    if not preference_memory.RESULTS.exists():
        return f"{what} ({command}): not measured.\n"
    report = json.loads(preference_memory.RESULTS.read_text())
    return f"{what} ({command}, {report['machine']}).\n\n{preference_memory.table(report)}"


def grid(device: str, what: str, tasks: str = "") -> str:
    """One device's grid as a table.

    Args:
        tasks: The benchmark of it, where it is not memory_grid.py.
    """
    command = f"`python benchmarks/{tasks}.py`" if tasks else f"`python benchmarks/memory_grid.py --device {device}`"
    path = ROOT / f"benchmarks/{tasks or f'memory_grid_{device}'}.json"
    if not path.exists():
        return f"{what} ({command}): not measured.\n"
    report: dict[str, Any] = json.loads(path.read_text())
    found = report["summary"]
    lines = [f"{what} ({command}, {report['machine']}).", ""]
    lines.append(
        f"{found['cells']} cells; {found['within_5_percent']:.0%} within 5 %; the lowest prediction is off by "
        f"{found['most_too_low']:+.1%}, the highest by {found['most_too_high']:+.1%}, the mean by "
        f"{found['mean_absolute']:.1%}."
    )
    lines += ["", "| run | predicted GiB | measured GiB | error |", "|---|---|---|---|"]
    lines += [
        f"| {one['label']} | {one['predicted_gib']:.3f} | {one['measured_gib']:.3f} | {one['error']:+.1%} |"
        for one in report["cells"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
