"""Writes docs/scaling.md: several GPUs on paper, what was measured on CPU processes, and what would break first.

python docs/make_scaling.py > docs/scaling.md
python docs/make_scaling.py --picture docs/scaling.png
"""

import argparse
import json
import math
import random
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorasmith.data.lengths import sampled_rows
from lorasmith.engine import DDP, FSDP2, SINGLE, Engine
from lorasmith.memory import communication, facts, fit, machine
from lorasmith.memory.communication import Links
from lorasmith.memory.lengths import with_length
from lorasmith.memory.plans import Plan, make_plan
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.speed import SHARE_OF_PEAK
from lorasmith.memory.weights import GIB
from lorasmith.recipe import load_recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes/sft/llama-3.1-8b-qlora-16gb.yaml"
LARGE = "meta-llama/Llama-3.3-70B-Instruct"
AT_ONCE = Links("nothing", math.inf, math.inf, 0.0, 0.0)  # what is sent arrives at once
DISK, SHARED_DISK = 2e9, 1e9  # bytes/s of an NVMe disk, of a network file system; assumed
ROW_LENGTHS = range(200, 2049)  # tokens
INTRODUCTION = """\
# Scaling: more than one GPU

The same recipe trains on one GPU, several, or several machines; `run.effective_batch` stays what it says, so that the
losses do too. What changes is the accelerate config:

- `python scripts/plan.py RECIPE --gpus 2x24` plans for every engine and proposes the fastest that fits, with its
  command. `--gpus 8x8x80` is eight machines of eight cards, `--network 400` their Gbit/s, `--ram 128` the computer's
  free GiB, `--engine CONFIG.yaml` one accelerate config alone.
- DDP (`multi_gpu.yaml`) while the model fits one card: nothing but the adapter's gradients is sent.
- FSDP2 (`fsdp2.yaml`) where it does not: each process keeps 1/N of the weights, of the adapter, its gradients and its
  states, and fetches a block before it computes it. 4-bit weights are fetched in 4 bit.
- FSDP2 with offload (`fsdp2_offload.yaml`): that 1/N lies in the computer's memory, for which the plan asks too.
- DeepSpeed's ZeRO-2 shares out gradients and states alone, which are small for an adapter; ZeRO-3 the weights too, but
  no quantized ones.

**Every figure for GPUs on this page is predicted; none has been run.** The predictions are the plan's own, printed by
`python docs/make_scaling.py`, from these assumptions:

| what | assumed | why |
|---|---|---|
"""
PCIE, NVLINK, NVLINK4 = communication.PCIE, communication.NVLINK, communication.NVLINK4
ASSUMED = (
    ("matrix products", f"{SHARE_OF_PEAK:.0%} of the card's data sheet", "`lorasmith/memory/speed.py`; RTX 4090, A100"),
    (
        "PCIe 4 x16",
        f"{PCIE.device / 1e9:g} GB/s between cards, {PCIE.host / 1e9:g} GB/s to the computer",
        "data sheet 32 GB/s; consumer cards send by way of the computer's memory",
    ),
    (
        "NVLink",
        f"{NVLINK.device / 1e9:g} GB/s (A100), {NVLINK4.device / 1e9:g} (H100)",
        "70 % of the data sheet, each way",
    ),
    (
        "network of 25, 100, 400 Gbit/s",
        "2.5, 10, 40 GB/s a machine",
        f"{communication.SHARE_OF_NETWORK:.0%} of its rate",
    ),
    ("a step of a collective", f"{PCIE.latency * 1e6:g} µs", "typical of NCCL"),
    (
        "overlap",
        "a fetch hides behind the pass that computes, but for its first block",
        "FSDP2 fetches one block ahead",
    ),
    (
        "a card's memory outside of tensors",
        "0.5 GiB for CUDA, 0.25 GiB for NCCL, 3 % of what comes and goes",
        "[memory.md](memory.md)",
    ),
    (
        "reading a disk",
        f"{DISK / 1e9:g} GB/s, a shared one {SHARED_DISK / 1e9:g} GB/s",
        "typical NVMe and network file systems",
    ),
)
FORMULAS = """
What is sent, of N processes (ZeRO, [arXiv 1910.02054](https://arxiv.org/abs/1910.02054), section 7; FSDP,
[arXiv 2304.11277](https://arxiv.org/abs/2304.11277), section 3.3), in each update:

| engine | sent and received by each process |
|---|---|
| DDP | 2 (N-1)/N of the gradients, 4 bytes for each trained weight |
| FSDP2, ZeRO-3 | (N-1)/N of the whole base, once a micro-batch forward and once backward; (N-1)/N of the gradients |
| ZeRO-2 | (N-1)/N of the gradients, and of what was trained |

So fetching costs the same however few tokens a micro-batch has: a sharded model wants large micro-batches, and the plan
chooses them by that. With `fsdp_reshard_after_forward: false` blocks are fetched once, and kept whole until the
backward pass: half of what is sent, and a card must hold the base after all.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="draw tokens/s against GPUs into this file")
    arguments = parser.parse_args()
    if arguments.picture:
        draw(arguments.picture)
        return
    print(INTRODUCTION + "\n".join(f"| {' | '.join(one)} |" for one in ASSUMED))
    print(FORMULAS)
    print("## Tokens/s and memory against GPUs, predicted\n")
    print("Rows of 2,048 tokens; settings chosen by the plan. *Waiting* is the share of the time in which a card has")
    print(
        "nothing to compute; *of ideal* compares with as many times the smallest number of cards that fits. Not yet run"
    )
    print("on GPUs: the last column stays empty until it is.\n")
    print("![tokens/s against the number of GPUs, predicted](scaling.png)\n")
    for title, words, cards in WORKLOADS:
        print(f"### {title}\n")
        print(workload(words, cards))
    print(breaking())
    print(measured())


WORKLOADS: tuple[tuple[str, list[str], list[tuple[float, int, int, float]]], ...] = (
    (
        "Llama 3.1 8B in 4 bit, 24 GiB cards over PCIe, 16 rows an update",
        [],
        [(24, 1, count, 0) for count in (1, 2, 4, 8)],
    ),
    (
        "Llama 3.3 70B in 4 bit, 24 GiB cards over PCIe, 16 rows an update",
        [f"model.name={LARGE}"],
        [(24, 1, count, 0) for count in (2, 4, 8)],
    ),
    (
        "Llama 3.3 70B in bfloat16, machines of eight 80 GiB cards, 64 rows an update",
        [f"model.name={LARGE}", "model.quantization=none", "run.effective_batch=64"],
        [(80, 1, 8, 0)] + [(80, 8, 8, gbit) for gbit in (25, 100, 400)],
    ),
)  # (GiB, machines, cards of each, Gbit/s between them)


def planned(words: list[str], card: tuple[float, int, int, float], kind: str, offload: bool = False) -> Plan:
    """The plan of a workload under one engine."""
    gib, machines, count, network = card
    recipe = load_recipe(RECIPE, words, "sft")
    shape = read_shape(*facts.find_config(recipe.model.name))
    settled = with_length(recipe, shape.positions)[0]
    target = machine.a_card(gib, count, network=network)
    kind = SINGLE if machines * count == 1 else kind
    engine = Engine(kind, machines * count, machines, offload=offload)
    return make_plan(settled, shape, sampled_rows(settled, "sft"), target, engine=engine)


def waiting(plan: Plan) -> float:
    """The share of the time that a plan's process waits for others."""
    rows = max(1, plan.recipe.run.effective_batch // plan.engine.processes)
    rate = replace(plan.machine.rate, links=AT_ONCE)
    lengths = plan.rows.lengths[:64]
    with_links = fit.Workload(plan.shape, lengths, rows, plan.machine.rate).speed(plan.setting)
    return 1 - with_links / fit.Workload(plan.shape, lengths, rows, rate).speed(plan.setting)


def fitting(words: list[str], card: tuple[float, int, int, float]) -> list[Plan]:
    """The plans of DDP, FSDP2 and FSDP2 with offload that fit."""
    single = card[1] * card[2] == 1
    kinds = [(SINGLE, False)] if single else [(DDP, False), (FSDP2, False), (FSDP2, True)]
    return [plan for plan in (planned(words, card, *kind) for kind in kinds) if plan.fits]


def name_of(card: tuple[float, int, int, float]) -> str:
    """Cards, as --gpus writes them."""
    gib, machines, count, network = card
    return f"{count}x{gib:g}" if machines == 1 else f"{machines}x{count}x{gib:g}, {network:g} Gbit/s"


def workload(words: list[str], cards: list[tuple[float, int, int, float]]) -> str:
    """A table of engines over numbers of cards."""
    lines = [
        f"`python scripts/plan.py {RECIPE.relative_to(ROOT)} {' '.join(words)} --gpus ...`\n".replace("  ", " "),
        "| cards | engine | GiB a card | GiB a computer | micro-batch | tokens/s | of ideal | waiting | measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first: dict[str, float] = {}  # tokens/s of a card at the smallest number that fits
    for card in cards:
        plans = fitting(words, card)
        if not plans:
            lines.append(f"| {name_of(card)} | none fits | | | | | | | |")
        for plan in plans:
            kind = plan.engine.kind + " with offload" * plan.engine.offload
            each = first.setdefault("DDP" if plan.engine.kind in (SINGLE, DDP) else kind, plan.speed)
            way = plan.setting.checkpointing
            how = {"none": "", "all": ", checkpointing"}.get(way, f", {way}")
            speed = f"{plan.speed * plan.engine.processes:,.0f} | {plan.speed / each:.0%} | {waiting(plan):.0%}"
            size = f"{plan.needed / GIB:.1f} | {plan.host / GIB:.0f}"
            lines.append(f"| {name_of(card)} | {kind} | {size} | {plan.micro_batch} rows{how} | {speed} | |")
    return "\n".join(lines) + "\n"


def breaking() -> str:
    """What would break first, with figures."""
    small = planned([], (24, 1, 2, 0), FSDP2)
    pair = planned([f"model.name={LARGE}"], (24, 1, 2, 0), FSDP2, True)
    large, slow = (planned(WORKLOADS[2][1], (80, 8, 8, gbit), FSDP2) for gbit in (100, 25))
    plans = (small, pair, large, slow)
    gb = [communication.fetched_bytes(plan.shape, plan.setting) / 1e9 for plan in plans]
    seconds = [communication.fetch_seconds(plan.shape, plan.setting, plan.machine.rate.links) for plan in plans]
    saved = 16 * large.setting.adapter_weights(large.shape)
    busy = {(n, rows): evenness(n, rows) for n, rows in ((2, 16), (8, 16), (8, 64), (64, 64))}
    whole = 2 * large.shape.vocab * large.shape.hidden * 2 / GIB
    items = (
        f"**Fetching over PCIe.** One fetch of the 8B base in 4 bit is {gb[0]:.1f} GB, {seconds[0]:.2f} s between two "
        f"cards; of the 70B one {gb[1]:.0f} GB, {seconds[1]:.1f} s with offload. A micro-batch needs two, which hide "
        f"behind its arithmetic but for {waiting(pair):.1%} of the time at {pair.micro_batch} rows of 2,048 tokens. "
        "Short rows hide less: the plan then takes more of them. Of 64 cards that share the 70B in bfloat16, each "
        f"fetches {gb[2]:.0f} GB: {seconds[2]:.0f} s over 100 Gbit/s, {seconds[3]:.0f} s over 25. There the network is "
        "the limit, not the cards: sharding within a machine and copies across machines "
        "(`parallelism_config_dp_replicate_size`) would send gradients alone between them. It is not offered yet.",
        "**The computer's memory while loading.** 4-bit weights are read whole by every process before they are cut "
        "(accelerate turns `fsdp_cpu_ram_efficient_loading` off for them): two processes of the 70B base take "
        f"{pair.host / GIB:.0f} GiB of one computer, eight {4 * pair.host / GIB:.0f}. `plan.py --ram GIB` tells it "
        "beforehand.",
        "**The output layer and the embeddings**, each of which FSDP2 gathers at once: with the buffer "
        f"{whole:.1f} GiB for the 70B base. They decide that two 24 GiB cards need offload, not the blocks.",
        f"**Reading the disk N times.** Eight processes that read {gb[1]:.0f} GB each from one NVMe disk need "
        f"{short(8 * gb[1] * 1e9 / DISK)} where the page cache holds nothing; eight machines that read {gb[2]:.0f} GB "
        f"each through one shared file system {short(8 * gb[2] * 1e9 / SHARED_DISK)}.",
        "**The slowest process.** Every update waits for the process with most tokens. Rows of "
        f"{ROW_LENGTHS[0]} to {ROW_LENGTHS[-1]:,} tokens, all lengths alike often, keep two processes busy "
        f"{busy[2, 16]:.0%} of the time at 16 rows an update, eight {busy[8, 16]:.0%}, eight at 64 rows "
        f"{busy[8, 64]:.0%}, 64 at 64 rows {busy[64, 64]:.0%}. More rows an update or packing mend it.",
        "**Checkpoints.** Only what is trained is gathered and written, by one process: "
        f"{saved / GIB:.1f} GiB for the 70B's adapter with its states, {short(saved / SHARED_DISK)} on a shared file "
        "system. The frozen base is never written.",
        "**Rendezvous and hangs.** Processes that do not find each other wait for torch's timeout; one that dies ends "
        "the others.",
    )
    filled = [textwrap.fill(f"{i}. {item}", 120, subsequent_indent="   ") for i, item in enumerate(items, 1)]
    head = ["## What would break first\n", "In the order in which it is met; all computed, none run.\n"]
    return "\n".join([*head, *filled, ""])


def short(seconds: float) -> str:
    """A duration for people."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def evenness(processes: int, rows: int) -> float:
    """Mean share of the processes' time that is used if each gets as many rows, whatever their lengths."""
    draw, total = random.Random(0), 0.0
    for _ in range(500):
        picked = draw.choices(ROW_LENGTHS, k=rows)
        parts = [sum(picked[one::processes]) for one in range(processes)]
        total += sum(parts) / processes / max(parts)
    return total / 500


def measured() -> str:
    """What CPU processes show of the model of time, of memory, and of the losses."""
    return f"""\
## Measured: time on CPU processes

{times()}

## Measured: memory of one process

{memory()}

## The same losses under every engine

`python benchmarks/engines.py`: six updates of 16 rows of the quickstart, the largest difference from one process in the
losses of updates, the losses of evaluation rows, and the tensors of the adapter, whose names and shapes are the same.
The optimizer's first steps enlarge in the adapter what rounding leaves of gradients that are nearly nothing.
Checkpoints are the same files under every engine, and go on under any other (`tests/test_engines.py`).

Two things part the losses by more, as everywhere: what is drawn in the forward pass (dropout, NEFTune) is drawn by each
process for itself; and where an epoch's rows do not fill its last update, processes that lack a row there take one of
the epoch's first (accelerate's `even_batches`), while one process makes a smaller update.

{losses()}
"""


def times() -> str:
    """Predicted against measured updates."""
    path = ROOT / "benchmarks/scaling.json"
    if not path.exists():
        return "`python benchmarks/scaling.py`: not measured."
    report: dict[str, Any] = json.loads(path.read_text())
    sent = [
        f"{count} processes {one['bytes_per_second'] / 1e9:.2f} GB/s and {one['latency'] * 1e3:.1f} ms a step"
        for count, one in report["gloo"].items()
    ]
    text = (
        f"`python benchmarks/scaling.py` ({report['machine']}, {report['cores']} cores; the fastest update of a run "
        f"counts): updates of {report['rows']} rows, one thread a process. gloo alone: "
        f"{'; '.join(sent)}. The prediction puts these into the plan's formulas and starts from the update of one "
        "process; with more processes than cores, these share them, so that four cannot be faster than two. On a CPU "
        "nothing hides what is sent. FSDP2's own Python for each block of each micro-batch is not in the formulas, and "
        "shows on models as small as these; so does what processes that share a core lose by taking turns."
    )
    if "load" in report:
        text += f" Load before and at the end: {' and '.join(map(str, report['load']))}."
    lines = [
        textwrap.fill(text, 120) + "\n",
        "| base | engine | processes | update, predicted | measured | error | of it sending | on GPUs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in report["runs"]:
        known = "predicted" in one
        planned = f"{one['predicted']:.2f} s" if known else ""
        error, sending = (f"{one['error']:+.0%}", f"{one['sending']:.2f} s") if known else ("", "")
        run = f"{one['base']} | {one['engine']} | {one['processes']}"
        lines.append(f"| {run} | {planned} | {one['seconds']:.2f} s | {error} | {sending} | |")
    return "\n".join(lines)


def memory() -> str:
    """Planned against measured bytes."""
    path = ROOT / "benchmarks/engine_memory.json"
    if not path.exists():
        return "`python benchmarks/engine_memory.py`: not measured."
    report: dict[str, Any] = json.loads(path.read_text())
    found = report["summary"]
    text = (
        f"`python benchmarks/engine_memory.py` ({report['machine']}): {found['cells']} trainings of models made for "
        f"it, through the script's own trainer. At the peak the plan is off by {found['most_too_low']:+.1%} to "
        f"{found['most_too_high']:+.1%}, {found['mean_absolute']:.1%} in the mean. *Loaded* is what a process keeps of "
        "the model, *step* the peak of forward and backward, *update* the optimizer's. The worst cells are a block's "
        "buffer above the plan, and differ from one measurement to the next: gloo's threads let buffers go late, or "
        "unseen. Offload, ZeRO and loading are counted by formulas of the same kind and not measured: they need a GPU."
    )
    lines = [
        textwrap.fill(text, 120) + "\n",
        "| run | loaded, planned / measured MiB | step | update |",
        "|---|---|---|---|",
    ]
    for one in report["cells"]:
        cells = [
            f"{1024 * planned:.1f} / {1024 * one['measured_gib'][name]:.1f} ({one['errors'][name]:+.1%})"
            for name, planned in one["planned_gib"].items()
        ]
        lines.append(f"| {one['label']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def losses() -> str:
    """The comparison of losses, where it was measured."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import engines

    if not engines.RESULTS.exists():
        return "`python benchmarks/engines.py`: not measured."
    return engines.table(json.loads(engines.RESULTS.read_text())["found"])


def draw(path: Path) -> None:
    """Tokens/s against cards, both axes by powers, with the ideal beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    middle, large, one = WORKLOADS[1][1], WORKLOADS[2][1], (80, 1, 8, 0.0)
    few = [(24, 1, count, 0.0) for count in (1, 2, 4, 8)]
    series = (
        ("8B nf4, DDP, 24 GiB, PCIe", [], few, DDP, False),
        ("8B nf4, FSDP2, 24 GiB, PCIe", [], few[1:], FSDP2, False),
        ("70B nf4, FSDP2 with offload, 24 GiB, PCIe", middle, few[1:], FSDP2, True),
        ("70B bf16, FSDP2, 80 GiB, 25 Gbit/s", large, [one, *((80, n, 8, 25.0) for n in (2, 4, 8))], FSDP2, False),
        ("70B bf16, FSDP2, 80 GiB, 400 Gbit/s", large, [one, *((80, n, 8, 400.0) for n in (2, 4, 8))], FSDP2, False),
    )
    for label, words, cards, kind, offload in series:
        plans = [planned(words, card, kind, offload) for card in cards]
        counts = [plan.engine.processes for plan in plans]
        speeds = [plan.speed * plan.engine.processes for plan in plans]
        [line] = axes.plot(counts, speeds, marker="o", label=label)
        ideal = [speeds[0] * count / counts[0] for count in counts]
        axes.plot(counts, ideal, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="tokens/s, predicted", title="dotted: ideal")
    axes.set_xticks([1, 2, 4, 8, 16, 32, 64], ["1", "2", "4", "8", "16", "32", "64"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()
