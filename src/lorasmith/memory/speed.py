"""How long a run takes: arithmetic per token, and what machines do of it in a second."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.memory.communication import (
    GLOO,
    PCIE,
    Links,
    fetch_seconds,
    links_of,
    update_waiting_seconds,
    waited_seconds,
)
from lorasmith.memory.conditions import Setting
from lorasmith.memory.generation import cache_bytes
from lorasmith.memory.shape import Shape
from lorasmith.user_cache import user_cache

SHARE_OF_PEAK = 0.30  # of a card's data sheet, assumed; torchtune reports 34 to 56 % with packed rows
SHARE_OF_MATMUL = 0.6  # of a CPU's matmul rate, assumed until a run on this machine has been measured
LAYER_SECONDS = {"cuda": 0.002, "cpu": 0.001}  # of a block's Python and launches, forward and backward
DEQUANTIZED_BYTES = 2.5  # moved for each 4-bit weight that is unpacked


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU by its maker's data sheet.

    Attributes:
        gib: Memory.
        tflops: Dense matrix TFLOP/s in 16 bit with float32 accumulation.
        gbps: Memory bandwidth in GB/s.
    """

    name: str
    gib: float
    tflops: float
    gbps: float


CARDS = (
    Card("RTX 4060", 8, 30.2, 272),
    Card("RTX 3060", 12, 25.4, 360),
    Card("RTX 4060 Ti", 16, 44.1, 288),
    Card("T4", 15, 65, 320),
    Card("RTX 4080", 16, 97.5, 717),
    Card("RTX 4090", 24, 165.2, 1008),
    Card("RTX 3090", 24, 71, 936),
    Card("L4", 24, 121, 300),
    Card("A10", 24, 125, 600),
    Card("RTX 5090", 32, 209.5, 1792),
    Card("A100-SXM4-40GB", 40, 312, 1555),
    Card("RTX A6000", 48, 154.8, 768),
    Card("RTX 6000 Ada", 48, 182.1, 960),
    Card("A100-SXM4-80GB", 80, 312, 2039),
    Card("A100 80GB", 80, 312, 1935),
    Card("H100", 80, 989, 3350),
    Card("H200", 141, 989, 4800),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """What a machine computes.

    Attributes:
        flops: Useful FLOP/s in training's matrix products.
        bytes: Memory bandwidth in bytes/s.
        why: Where the figure comes from.
        links: Between its processes.
    """

    flops: float
    bytes: float
    why: str
    links: Links = PCIE


def card_of(gib: float, name: str = "") -> Card:
    """The card of a name, else the slowest typical one of at least this memory."""
    for card in sorted(CARDS, key=lambda one: -len(one.name)):
        if card.name.lower() in name.lower():
            return card
    return next((card for card in CARDS if card.gib >= gib), CARDS[-1])


def card_rate(gib: float, name: str = "", network: float = 0.0) -> Rate:
    """What a known card is assumed to do.

    Args:
        network: Gbit/s between machines of such cards; 0 for one machine.
    """
    card = card_of(gib, name)
    why = f"{SHARE_OF_PEAK:.0%} of the data sheet of an {card.name} assumed, {card.tflops:g} TFLOP/s"
    return Rate(card.tflops * 1e12 * SHARE_OF_PEAK, card.gbps * 1e9, why, links_of(card.name, network))


def cpu_rate(threads: int) -> Rate:
    """What this CPU does, from the last measurement of a script that loads torch, else from a short one by numpy."""
    known = machine_facts().get("matmul")
    if known:
        why = f"from its matmul rate, {known['flops'] / 1e9:,.0f} GFLOP/s"
        return Rate(known["flops"] * SHARE_OF_MATMUL, 1e10, why, GLOO)
    import numpy as np

    left = np.random.default_rng(0).standard_normal((768, 768), dtype=np.float32)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        left @ left
        best = min(best, time.perf_counter() - start)
    flops = 2 * 768**3 / best
    why = f"from its matmul rate, {flops / 1e9:,.0f} GFLOP/s on {threads} threads"
    return Rate(flops * SHARE_OF_MATMUL, 1e10, why, GLOO)


def flops_per_token(shape: Shape, setting: Setting, mean_length: float, supervised: float = 1.0) -> float:
    """Arithmetic of one trained token, forward and backward, recomputation included; of an encoder-decoder's source
    with its share of the target.

    Args:
        mean_length: Tokens of the row that a mean token stands in.
        supervised: Share of the positions that go through the output layer.
    """
    linear = 2.0 * shape.used_weights
    only_trained = setting.chunked_loss or setting.device == "cuda"
    scored = setting.loss not in ("score", "classes") and shape.decoder is None
    head = 2.0 * shape.vocab * shape.hidden * (supervised if only_trained else 1.0) * scored
    # Half of the pairs where tokens see those before them alone.
    seen = mean_length if shape.window is None or shape.causal else min(mean_length, shape.window)
    attention = (2.0 if shape.causal else 4.0) * seen * shape.layers * shape.heads * shape.head_dim
    decoder_adapter = setting.decoder_adapter_weights(shape)
    adapter = 2.0 * (setting.adapter_weights(shape) - decoder_adapter)
    if shape.decoder is not None:
        written, share = shape.decoder, setting.target_share
        read = sum(one.weights for one in written.linears if one.reads == "source") * written.layers
        wide = written.layers * written.heads * written.head_dim
        linear += 2.0 * (read + share * (written.used_weights - read))
        attention += share * wide * mean_length * (2.0 * share + 4.0)
        adapter += 2.0 * share * decoder_adapter
        head = 2.0 * shape.vocab * shape.hidden * share
    forward = linear + attention + adapter
    # trl's loss projects once forward and twice backward; frozen weights need no gradient of their own.
    projected = 2 if setting.chunked_loss or setting.loss == "words" else 3
    total = forward + linear + 2 * attention + 2 * adapter + projected * head
    total += setting.readings * (linear + attention + head)
    return total + forward * setting.recomputed(shape.layers) / shape.layers


def micro_batch_seconds(
    shape: Shape, setting: Setting, tokens: float, rate: Rate, mean_length: float, fetch: float = 0.0
) -> float:
    """One micro-batch of padded `tokens`: arithmetic, unpacking of quantized weights, blocks' overhead, and waiting.

    Args:
        fetch: Seconds to fetch a sharded model's weights once.
    """
    passes = 2 + setting.readings + setting.recomputed(shape.layers) / shape.layers
    layers = shape.layers + (shape.decoder.layers if shape.decoder is not None else 0)
    weights = sum(one.layers * one.block_weights for one in (shape, shape.decoder) if one is not None)
    seconds = tokens * flops_per_token(shape, setting, mean_length) / rate.flops
    if setting.quantization in ("nf4", "fp4"):
        seconds += passes * DEQUANTIZED_BYTES * weights / rate.bytes
    if setting.quantization == "int8":
        seconds *= 1.5  # bitsandbytes' mixed decomposition; ms-swift and PEFT report 1.3 to 2 times
    if setting.dora:
        seconds *= 1.26  # PEFT's method comparison, L40S
    if setting.checkpointing == "offload":
        seconds += 2 * tokens * shape.hidden * 2 * shape.layers / 12e9 * 0.2  # PCIe, mostly behind the arithmetic
    seconds += LAYER_SECONDS[setting.device] * layers * passes / 2
    return seconds + waited_seconds(setting, fetch, seconds, passes, layers + 2)


def tokens_per_second(shape: Shape, setting: Setting, lengths: list[int], effective: int, rate: Rate) -> float:
    """Tokens without padding that are trained in a second.

    Args:
        lengths: Of the rows, or of a sample of them.
        effective: Rows an update on one device, sorted by length among themselves as the trainer does.
    """
    seconds, tokens = 0.0, 0
    fetch = fetch_seconds(shape, setting, rate.links)
    updating = update_waiting_seconds(shape, setting, rate.links)
    mean = sum(length * length for length in lengths) / max(1, sum(lengths))
    for start in range(0, len(lengths), effective):
        window = sorted(lengths[start : start + effective], reverse=True)
        seconds += updating * len(window) / effective
        for first in range(0, len(window), setting.micro_batch):
            batch = window[first : first + setting.micro_batch]
            padded = sum(batch) if setting.flat else batch[0] * len(batch)
            seconds += micro_batch_seconds(shape, setting, padded, rate, mean, fetch)
            tokens += sum(batch)
    return tokens / seconds


def generation_seconds(shape: Shape, setting: Setting, prompt: float, rate: Rate) -> float:
    """To make as many completions as are made at once, each of them as long as it may be.

    Prompts are arithmetic. A token more is the longer of its arithmetic and of what is moved for it, which is every
    weight once, unpacked where it is in 4 bit, and the cache three times (read, and written anew), besides the blocks'
    overhead.

    Args:
        prompt: Tokens of a mean prompt.
    """
    one = setting.generation
    if one is None or one.elsewhere:
        return 0.0
    head = shape.vocab * shape.hidden
    flops = 2.0 * (shape.used_weights + setting.adapter_weights(shape)) * setting.generated
    four = setting.quantization in ("nf4", "fp4")
    size = DEQUANTIZED_BYTES + setting.itemsize if four else 1 if setting.quantization == "int8" else setting.itemsize
    cache = cache_bytes(shape, setting.generated, 1, setting.itemsize) * (prompt + one.completion / 2)
    moved = size * shape.used_weights + setting.itemsize * head + 3 * cache
    overhead = LAYER_SECONDS[setting.device] / 2 * shape.layers
    token = max((flops + 2.0 * head * setting.generated) / rate.flops, moved / rate.bytes) + overhead
    token = max(token, fetch_seconds(shape, setting, rate.links))
    return prompt * flops / rate.flops + overhead + one.completion * token


def update_seconds(shape: Shape, setting: Setting, lengths: list[int], rate: Rate) -> tuple[float, float]:
    """One device's share of an update: to make its completions, and to train on them.

    Args:
        lengths: Tokens of prompts with their completions, or of a sample of them.
    """
    one = setting.generation
    assert one is not None
    mean = sum(lengths) / len(lengths)
    tokens = setting.micro_batch * mean
    if not setting.flat:
        tokens = setting.micro_batch * setting.longest
    elif one.shared:
        alone = setting.micro_batch - one.prompts(setting.micro_batch, setting.steps)
        tokens -= alone * (mean - one.completion - 1)
    fetch = fetch_seconds(shape, setting, rate.links)
    training = setting.accumulation * micro_batch_seconds(shape, setting, tokens, rate, mean, fetch)
    training += update_waiting_seconds(shape, setting, rate.links)
    generations = setting.accumulation / (setting.steps * one.iterations)
    return generations * generation_seconds(shape, setting, mean - one.completion, rate), training


def facts_file() -> Path:
    """Where measurements of this machine are kept between runs."""
    return user_cache() / "machine.json"


def machine_facts() -> dict[str, Any]:
    """Measurements of this machine, or nothing yet."""
    try:
        found = json.loads(facts_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_machine_facts(**facts: Any) -> None:
    """Add measurements; a machine without a writable cache goes without."""
    path = facts_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(machine_facts() | facts, indent=1), encoding="utf-8")
        os.replace(beside, path)
    except OSError:
        return
