"""Which settings fit a machine, which of them is fastest, and the smallest changes that make a run fit."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lorasmith.engine import FSDP2
from lorasmith.memory.conditions import Setting
from lorasmith.memory.methods import SFT, Method
from lorasmith.memory.peak import Memory, plan_memory
from lorasmith.memory.shape import Shape
from lorasmith.memory.speed import Rate, tokens_per_second, update_seconds

LARGEST_MICRO_BATCH = 64  # rows that a search tries
CUTS = (32768, 16384, 8192, 4096, 2048, 1024, 512, 256)  # tokens that max_length may be lowered to
# Words of the recipe to those of a setting, the plainest first: N is one block in N.
CHECKPOINTING: dict[bool | int | str, str] = {False: "none", 4: "every 4", 3: "every 3", 2: "every 2", True: "all"}
CHECKPOINTING["offload"] = "offload"
IN_RECIPE = {setting: word for word, setting in CHECKPOINTING.items()}
PLAINEST = tuple(IN_RECIPE)
COMPLETION_CUTS = (*CUTS, 128, 64)  # tokens that trainer.max_completion_length may be lowered to
LENGTHS = ("trainer.max_length", "trainer.max_completion_length")
TRAINS_ANOTHER = frozenset({"model.quantization", "adapter.rank", "trainer.num_generations", *LENGTHS})


@dataclass(frozen=True, slots=True)
class Proposal:
    """A set of changes that fits.

    Attributes:
        overrides: Recipe keys and their new values.
        speed: Of the run with them, over its speed with the recipe's own settings.
        trains_same: Whether the same adapter is learned from the same tokens, but for rounding.
    """

    overrides: dict[str, Any]
    setting: Setting
    memory: Memory
    speed: float
    trains_same: bool

    def text(self) -> str:
        """The overrides as on a command line."""
        return " ".join(f"{key}={value}" for key, value in self.texts().items())

    def texts(self) -> dict[str, str]:
        """The overrides with their values as YAML writes them."""
        return {
            key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in self.overrides.items()
        }


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained, whatever the settings.

    Attributes:
        lengths: Tokens of the sequences, or of a sample of them.
        rows_per_update: Sequences on one device.
        rate: Of the machine.
    """

    shape: Shape
    lengths: list[int]
    rows_per_update: int
    rate: Rate
    method: Method = SFT

    def micro_batches(self) -> list[int]:
        """The sequences of a micro-batch that a search tries, smallest first: whole rows, enough for the method."""
        together = self.method.sequences
        sizes = micro_batches(self.rows_per_update)
        return [size for size in sizes if size % together == 0 and size >= together * self.method.least]

    def checkpointing(self, device: str) -> list[str]:
        """The ways of checkpointing that a search tries, the plainest first."""
        return [kind for kind in PLAINEST if kind != "offload" or (device == "cuda" and self.method.offloads)]

    def speed(self, setting: Setting) -> float:
        """Tokens/s without padding, the making of completions included."""
        lengths = [min(length, setting.longest) for length in self.lengths]
        if setting.generation is not None:
            seconds = sum(update_seconds(self.shape, setting, lengths, self.rate))
            return self.rows_per_update * sum(lengths) / len(lengths) / seconds
        return tokens_per_second(self.shape, setting, lengths, self.rows_per_update, self.rate)

    def settings(self, setting: Setting, micro_batch: int, **changes: Any) -> list[Setting]:
        """The setting with another micro-batch, once for each number of completions that may be made at once."""
        one = with_batch(setting, micro_batch, self.rows_per_update, **changes)
        if one.generation is None:
            return [one]
        steps = one.generation.choices(micro_batch, one.accumulation)
        return [replace(one, generation=one.generation.made_at_once(step)) for step in steps]


def fastest(
    work: Workload, setting: Setting, budget: int, micro_batches: list[int], checkpointing: list[str]
) -> tuple[Setting, Memory, float] | None:
    """The fastest of the allowed settings that fits in `budget` bytes, with its memory and tokens/s; None if none does.

    Within 3 % of the best speed, the plainest setting is taken, which makes most completions at once, then the one that
    needs least memory: so small a difference is no reason.
    """
    fitting = []
    for micro, kind in itertools.product(micro_batches, checkpointing):
        for one in work.settings(setting, micro, checkpointing=kind):
            memory = plan_memory(work.shape, one)
            if memory.total <= budget:
                fitting.append((one, memory, work.speed(one)))
    if not fitting:
        return None
    best = max(speed for _, _, speed in fitting)
    close = [one for one in fitting if one[2] >= 0.97 * best]
    return min(close, key=lambda one: (PLAINEST.index(one[0].checkpointing), -one[0].generated, one[1].total))


def with_batch(setting: Setting, micro_batch: int, rows_per_update: int, **changes: Any) -> Setting:
    """A setting with another micro-batch at the same rows an update."""
    return replace(setting, micro_batch=micro_batch, accumulation=rows_per_update // micro_batch, **changes)


def micro_batches(rows_per_update: int) -> list[int]:
    """The divisors of the rows an update that a search tries, smallest first."""
    return [size for size in range(1, min(rows_per_update, LARGEST_MICRO_BATCH) + 1) if rows_per_update % size == 0]


def smallest_changes(work: Workload, setting: Setting, budget: int, most: int = 6) -> list[Proposal]:
    """The changes that make a run fit, none of which is larger than it must be, those that cost least speed first.

    Changes that train the same thing in another way (micro-batch, checkpointing, optimizer states) come before those
    that train another (quantization, rank, row length).

    Args:
        budget: Bytes.
    """
    now = work.speed(setting)
    best: dict[frozenset[str], Proposal] = {}
    for overrides, one in _variants(work, setting):
        keys = frozenset(overrides)
        if not keys or any(known < keys for known in best):
            continue  # fewer changes do it
        memory = plan_memory(work.shape, one)
        if memory.total > budget:
            continue
        proposal = Proposal(overrides, one, memory, work.speed(one) / now, not keys & TRAINS_ANOTHER)
        if keys not in best or _change(proposal) > _change(best[keys]):
            best[keys] = proposal
    ranked = sorted(best.values(), key=lambda one: (one.trains_same, *_change(one)[:1], one.speed), reverse=True)
    return ranked[:most]


def largest(fits: Callable[[int], bool], highest: int) -> int:
    """The largest whole number up to `highest` for which `fits` holds, given that it holds for all below; else 0."""
    low, high = 0, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _variants(work: Workload, setting: Setting) -> Iterator[tuple[dict[str, Any], Setting]]:
    """Every combination of changes with its overrides, those with fewer changes first.

    Of the numbers of completions that a recipe leaves open, each comes, the largest first.
    """
    together = work.method.sequences
    smaller = [size // together for size in reversed(work.micro_batches()) if size < setting.micro_batch]
    plainer = PLAINEST[: PLAINEST.index(setting.checkpointing) + 1]
    lighter = [kind for kind in work.checkpointing(setting.device) if kind not in plainer]
    bits = {"none": ["int8", "nf4"], "int8": ["nf4"]}.get(setting.quantization, [])
    eight = [] if "8bit" in setting.optimizer else ["adamw_8bit"]
    if setting.shared.shards_weights:  # engine_checks has what cannot be sharded
        bits = [kind for kind in bits if kind != "int8" and setting.shared.kind == FSDP2]
        eight = []
    ranks = [setting.rank // step for step in (2, 4) if setting.rank // step >= 4]
    axes: list[list[tuple[str, Any]]] = [
        [("run.micro_batch", size) for size in smaller],
        [("run.gradient_checkpointing", IN_RECIPE[kind]) for kind in lighter],
        [("model.quantization", kind) for kind in bits],
        [("trainer.optim", kind) for kind in eight],
        [("adapter.rank", rank) for rank in ranks],
    ]
    if setting.generation is None:
        axes.append([("trainer.max_length", length) for length in CUTS if length < setting.longest])
    else:
        axes += setting.generation.smaller(COMPLETION_CUTS)
    combinations = itertools.product(*[[None, *axis] for axis in axes])
    for chosen in sorted(combinations, key=lambda one: sum(step is not None for step in one)):
        overrides = dict(step for step in chosen if step is not None)
        rows = overrides.get("run.micro_batch")
        micro = setting.micro_batch if rows is None else rows * together
        changes: dict[str, Any] = {"rank": overrides.get("adapter.rank", setting.rank)}
        if "run.gradient_checkpointing" in overrides:
            changes["checkpointing"] = CHECKPOINTING[overrides["run.gradient_checkpointing"]]
        if "model.quantization" in overrides:
            changes["quantization"] = overrides["model.quantization"]
        if "trainer.optim" in overrides:
            changes["optimizer"] = overrides["trainer.optim"]
        if "trainer.max_length" in overrides:
            cut = overrides["trainer.max_length"]
            changes |= {
                "longest": cut,
                "eval_longest": min(cut, setting.eval_longest),
                "supervised": min(cut, setting.supervised),
                "mixed": min(2 * cut, setting.mixed),
            }
        if setting.generation is not None:
            changes |= setting.generation.changes(overrides, setting.lengths, setting.eval_longest)
        for one in work.settings(setting, micro, **changes):
            yield overrides, one


def _change(proposal: Proposal) -> tuple[float, float, float]:
    """Sort key of proposals: the longest rows, then the largest rank, then the highest speed."""
    overrides = proposal.overrides
    longest = min(overrides.get(key, math.inf) for key in LENGTHS)
    return longest, overrides.get("adapter.rank", math.inf), proposal.speed
