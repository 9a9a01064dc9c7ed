"""The plan of a run: from its recipe, the model's shapes and the rows' lengths to memory, settings and time."""

import datetime
import random
from dataclasses import dataclass, field, replace
from typing import Any

from lorasmith.engine import DDP, SINGLE, Engine
from lorasmith.errors import FitError, RecipeError
from lorasmith.memory import fit
from lorasmith.memory.conditions import Setting
from lorasmith.memory.fit import Proposal, Workload
from lorasmith.memory.lengths import completion_length
from lorasmith.memory.machine import Machine
from lorasmith.memory.methods import METHODS, SFT, Method
from lorasmith.memory.peak import Memory, plan_memory
from lorasmith.memory.setting import Rows, setting_of
from lorasmith.memory.shape import Shape
from lorasmith.memory.speed import keep_machine_facts, machine_facts, update_seconds
from lorasmith.memory.weights import GIB
from lorasmith.recipe import Recipe
from lorasmith.recipe_checks import group_size

KEPT_SPEEDS = 200  # of runs of different kinds
SAMPLE = 512  # rows whose lengths stand for all in a plan's arithmetic


@dataclass(frozen=True, slots=True)
class Plan:
    """What was planned.

    Attributes:
        proposals: The smallest changes that make the run fit, when it does not.
        why: Why this micro-batch and this checkpointing.
        notes: What the plan does not know.
        method: The training script.
    """

    recipe: Recipe
    shape: Shape
    setting: Setting
    memory: Memory
    machine: Machine
    rows: Rows
    speed: float
    why: str
    proposals: list[Proposal] = field(default_factory=list)
    notes: tuple[str, ...] = ()
    method: Method = SFT

    @property
    def needed(self) -> int:
        """Bytes of the device, what the process held before included."""
        return self.memory.total + self.machine.base

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.needed <= self.machine.budget and (not self.machine.host or self.host <= self.machine.host)

    @property
    def host(self) -> int:
        """Bytes of the computer's memory that the processes of one machine take together; 0 on a CPU."""
        return self.memory.host_total * self.setting.shared.per_machine

    @property
    def engine(self) -> Engine:
        """How processes share the model."""
        return self.setting.shared

    @property
    def updates(self) -> int:
        """Updates of the whole run."""
        steps = self.recipe.trainer.get("max_steps", -1)
        if isinstance(steps, int) and steps > 0:
            return steps
        epochs = float(self.recipe.trainer.get("num_train_epochs", 3))
        rows = self.rows.count // self.method.sequences
        made = self.setting.generation
        if made is not None:  # whole updates alone, each trained on as often as the recipe says
            return max(1, round(epochs * (rows * made.group // self.recipe.run.effective_batch) * made.iterations))
        return max(1, round(epochs * -(-rows // self.recipe.run.effective_batch)))

    @property
    def tokens(self) -> int:
        """Tokens without padding that the whole run trains."""
        return round(
            self.updates
            * self.recipe.run.effective_batch
            * self.method.sequences
            * self.rows.mean
            * self.engine.context
        )

    @property
    def seconds(self) -> float:
        """Of the training itself."""
        return self.tokens / (self.speed * self.engine.processes)

    @property
    def disk(self) -> int:
        """Bytes that the run writes: the adapter, and checkpoints of it with its optimizer's states."""
        weights = self.setting.adapter_weights(self.shape) + self.setting.whole
        trainer = self.recipe.trainer
        saves = 0
        if trainer.get("save_strategy", "steps") != "no":
            every = trainer.get("save_steps", 500)
            saves = 1 + (self.updates // int(every) if isinstance(every, int) and every >= 1 else 1)
        kept = trainer.get("save_total_limit")
        saves = min(saves, int(kept) + 1) if isinstance(kept, int) else saves
        return 4 * weights + saves * 12 * weights + (16 << 20)

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch, as a recipe counts them."""
        return self.setting.micro_batch // self.method.sequences

    @property
    def kind(self) -> str:
        """What runs of like speed share: the model, the method and the settings that its speed hangs on."""
        one = self.setting
        how = (one.quantization, one.dtype, self.recipe.adapter.method, one.checkpointing, *self._engine_kind())
        by = () if self.method == SFT else (self.method.name,)
        return "|".join((self.machine.name, self.recipe.model.name, *how, *by))

    def _engine_kind(self) -> tuple[str, ...]:
        engine = self.engine
        if engine.kind in (SINGLE, DDP) and engine.machines == 1:
            return (str(engine.processes),)
        ways = ["offload"] * engine.offload + ["kept whole"] * (engine.shards_weights and not engine.reshard)
        ways += [f"context {engine.context}"] * (engine.context > 1)
        return (f"{engine.processes} on {engine.machines}", engine.kind, *ways)

    def line(self) -> str:
        """The verdict in a sentence."""
        if self.needed <= self.machine.budget and not self.fits:
            asked, has = self.host / GIB, self.machine.host / GIB
            return f"plan: {asked:.1f} of {has:.1f} GiB of the computer's memory: does not fit"
        room = (self.machine.budget - self.needed) / GIB
        verdict = f"fits, {room:.2f} GiB to spare" if self.fits else f"does not fit, {-room:.2f} GiB too much"
        each = f" for each process, {self.engine.label}" if self.engine.processes > 1 else ""
        return f"plan: {self.needed / GIB:.2f} of {self.machine.budget / GIB:.2f} GiB{each}: {verdict}"

    def parts_line(self) -> str:
        """The peak by part."""
        parts = self.memory.moments[self.memory.moment]
        shown = [f"{name} {size / GIB:.2f}" for name, size in parts.items() if size >= 0.005 * GIB]
        outside = self.needed - sum(parts.values())
        shown += [f"outside of tensors {outside / GIB:.2f}"] if outside >= 0.005 * GIB else []
        return f"  at the peak ({self.memory.moment}): {', '.join(shown)}"

    def batch_line(self) -> str:
        """The settings chosen, with the reason."""
        kinds = {"none": "no checkpointing", "all": "checkpointing", "offload": "checkpointing with offload"}
        how = self.setting.checkpointing
        kind = kinds.get(how, f"checkpointing of {how.replace('every ', 'one block in ')}")
        pairs = f" ({self.setting.micro_batch} sequences)" if self.method.sequences > 1 else ""
        return f"  micro-batch {self.micro_batch}{pairs}, {kind}: {self.why}"

    def time_line(self) -> str:
        """How long it takes, completions as long as they may be."""
        disk = f"; {self.disk / GIB:.2f} GiB of disk"
        return (
            f"  time: {self.tokens:,} tokens in {self.updates:,} updates, about {self.speed:,.0f} tokens/s "
            f"({self.machine.rate.why}): {spelled(self.seconds)}{disk}"
        )

    def generation_lines(self) -> list[str]:
        """What is made before it is trained on, and the share of the time that this takes."""
        made = self.setting.generation
        if made is None:
            return []
        completions = self.recipe.run.effective_batch
        line = f"  {self.method.name}: {completions} completions of up to {made.completion:,} tokens an update"
        if made.elsewhere:
            return [line]
        generating, training = update_seconds(self.shape, self.setting, self.rows.lengths, self.machine.rate)
        share = generating / (generating + training)
        at_once = f", {self.setting.generated} at once on each device" if self.steps_chosen else ""
        return [f"{line}{at_once}; generating them takes about {share:.0%} of the time"]

    @property
    def steps_chosen(self) -> int:
        """What trainer.steps_per_generation is by the plan; 0 where the recipe says how many are made at once."""
        made = self.setting.generation
        return self.setting.steps if made is not None and not made.said else 0

    def lines(self) -> list[str]:
        """All of it for a run's screen."""
        notes = [f"  note: {note}" for note in self.notes]
        return [self.line(), self.parts_line(), self.batch_line(), *self.generation_lines(), self.time_line(), *notes]

    def error(self) -> FitError:
        """The verdict of a run that does not fit, with what mends it."""
        if self.needed <= self.machine.budget:
            return FitError(
                f"the processes of a machine need {self.host / GIB:.1f} GiB of the computer's memory under "
                f"{self.engine.label}; it has {self.machine.host / GIB:.1f}. Take an engine that keeps less there "
                "(python scripts/plan.py RECIPE --gpus NxGIB shows all), or a smaller model."
            )
        ways = "; or ".join(proposal.text() for proposal in self.proposals[:3])
        what = f"Make it fit with: {ways}." if ways else "No setting of this recipe makes it fit: take a smaller model."
        needed, has = self.needed / GIB, self.machine.budget / GIB
        return FitError(f"the run needs {needed:.2f} GiB; {self.machine.name} has {has:.2f}. {what}")

    def record(self, held_gib: float) -> dict[str, Any]:
        """For run.json.

        Args:
            held_gib: What the process holds outside of the plan, just before the weights; 0 on CUDA.
        """
        return {
            "predicted_gib": round(held_gib + self.memory.tensors / GIB, 3),
            "tensors_gib": round(self.memory.tensors / GIB, 3),
            "budget_gib": round(self.machine.budget / GIB, 3),
            "moment": self.memory.moment,
            "parts_gib": {k: round(v / GIB, 3) for k, v in self.memory.moments[self.memory.moment].items()},
            "tokens_per_second": round(self.speed, 1),
            "why": self.why,
            "kind": self.kind,
            "engine": self.engine.label,
        }


def make_plan(
    recipe: Recipe,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    processes: int = 1,
    method: str = "sft",
    engine: Engine | None = None,
) -> Plan:
    """Plan a run; where the recipe says auto, the fastest setting that fits is chosen.

    Args:
        processes: Devices that share the effective batch under DDP.
        method: The training script, a key of METHODS.
        engine: How processes share batch and model, in place of DDP over `processes`.

    Raises:
        RecipeError: If a device's share of the effective batch is less than the method's smallest micro-batch, or what
            is made at once is no whole groups.
    """
    by = METHODS[method]
    rows = rows.completed(completion_length(recipe)) if by.generates else rows
    if engine is not None:
        processes, rows = engine.replicas, rows.shared(engine.context)
    per_process = by.sequences * max(1, recipe.run.effective_batch // processes)
    setting, notes = setting_of(recipe, shape, rows, machine.device, processes, by, machine.budget, engine)
    work = Workload(shape, _sample(rows.lengths), per_process, machine.rate, by)
    wanted, recompute = recipe.run.micro_batch, recipe.run.gradient_checkpointing
    sizes = work.micro_batches() if wanted == "auto" else [wanted * by.sequences]
    if not sizes:
        raise RecipeError(
            f"run.effective_batch is `{recipe.run.effective_batch}`; expected {by.least} rows or more for each of "
            f"{processes} devices, since {method} compares the rows of a micro-batch."
        )
    sizes = [size for size in sizes if work.settings(setting, size)]
    if not sizes:
        raise _no_whole_groups(recipe)
    kinds = work.checkpointing(machine.device) if recompute == "auto" else [fit.CHECKPOINTING[recompute]]
    room = machine.budget - machine.base
    found = fit.fastest(work, setting, room, sizes, kinds)
    if found is None:
        # Nothing that the recipe allows fits; the changes start from what it says, or from the smallest it allows.
        least = work.settings(setting, sizes[0], checkpointing=kinds[-1 if recompute == "auto" else 0])
        setting = least[-1]
        memory, speed, why = plan_memory(shape, setting), work.speed(setting), "the least that the recipe allows"
        proposals = fit.smallest_changes(work, setting, room)
        return Plan(recipe, shape, setting, memory, machine, rows, speed, why, proposals, notes, by)
    setting, memory, speed = found
    planned = Plan(recipe, shape, setting, memory, machine, rows, speed, "", method=by)
    measured = machine_facts().get("runs", {}).get(planned.kind)
    why = "as the recipe says" if len(sizes) == len(kinds) == 1 else "the fastest that fits"
    if len(sizes) * len(kinds) > 1 and setting.checkpointing == "none" and len(kinds) > 1:
        slower = work.speed(replace(setting, checkpointing="all"))
        why += f", {speed / slower:.2f} times as fast as with checkpointing" if slower < speed else ""
    if measured:
        speed, machine = float(measured), replace(machine, rate=replace(machine.rate, why="as measured here before"))
    return Plan(recipe, shape, setting, memory, machine, rows, speed, why, [], notes, by)


def _no_whole_groups(recipe: Recipe) -> RecipeError:
    """That no micro-batch makes whole groups of completions at once."""
    key = "steps_per_generation" if recipe.trainer.get("steps_per_generation") else "generation_batch_size"
    group, wanted = group_size(recipe.trainer), recipe.run.micro_batch
    return RecipeError(
        f"trainer.{key} is `{recipe.trainer.get(key)}`, with run.micro_batch `{wanted}`; expected what makes a "
        f"multiple of trainer.num_generations ({group}) completions at once. Drop it, and the plan chooses."
    )


def keep_speed(kind: str, tokens_per_second: float) -> None:
    """Remember a run's measured speed, per device, for the plans of others like it (`Plan.kind`)."""
    known = machine_facts().get("runs", {})
    known.pop(kind, None)
    keep_machine_facts(runs=dict([*known.items(), (kind, round(tokens_per_second, 1))][-KEPT_SPEEDS:]))


def spelled(seconds: float) -> str:
    """A duration for people, and when it ends for those that take long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    end = datetime.datetime.now() + datetime.timedelta(seconds=seconds)
    return f"{seconds / 3600:.1f} h, to {end:%a %d %b %H:%M}"


def _sample(lengths: list[int]) -> list[int]:
    """Some of the lengths, in a random order, as training draws the rows."""
    return random.Random(0).sample(lengths, min(SAMPLE, len(lengths)))
