"""Step 6 of a run: the memory plan, which chooses what the recipe leaves open and stops a run that does not fit."""

from dataclasses import replace
from typing import Any

from lorasmith import hardware
from lorasmith.console import say
from lorasmith.data.examples import PreparedTask
from lorasmith.data.pair_tokens import PairTokens
from lorasmith.data.prepare import Prepared
from lorasmith.data.streaming import PreparedStream
from lorasmith.engine import this_engine
from lorasmith.errors import ModelError
from lorasmith.hardware import Hardware
from lorasmith.memory import fit, machine, speed
from lorasmith.memory.machine import Machine
from lorasmith.memory.methods import METHODS, Method
from lorasmith.memory.plans import Plan, make_plan
from lorasmith.memory.setting import LONGEST_ROWS, Rows
from lorasmith.memory.shapes import UnknownArchitectureError, read_shape
from lorasmith.recipe import Recipe
from lorasmith.runs.settings import world_size
from lorasmith.speed.batches import WORTH_SHARING

STEPS = "steps_per_generation"
ASSUMED_NETWORK = 100  # Gbit/s between machines
LARGEST_UNPLANNED = 8  # sequences of a micro-batch where there is no plan


SAMPLED = 10_000  # lengths that stand for a stream's, so that the longest there may be hardly change their mean


def plan_run(
    recipe: Recipe,
    config: dict[str, Any],
    device: Hardware,
    prepared: Prepared,
    earlier: dict[str, Any],
    method: str = "sft",
) -> tuple[Recipe, dict[str, str], Plan | None]:
    """The recipe with its micro-batch and checkpointing settled, the reasons, and the plan, which is said.

    For grpo.py, trainer.steps_per_generation is settled too, where the recipe leaves it open.

    Args:
        config: The base model's configuration.
        earlier: run.json of this very recipe in its output folder, whose choices are kept; or empty.
        method: The training script, a key of METHODS.

    Raises:
        ModelError: If the recipe asks for what this device cannot do.
        FitError: If the run does not fit.
    """
    if recipe.run.gradient_checkpointing == "offload" and device.device == "cpu":
        raise ModelError("run.gradient_checkpointing is `offload`, which needs a GPU. Use auto, true or false.")
    if earlier:
        chosen = earlier["recipe"]["run"]
        steps = earlier["recipe"]["trainer"].get(STEPS, 0) if METHODS[method].generates else 0
        recipe = _settled(recipe, chosen["micro_batch"], chosen["gradient_checkpointing"], steps)
    try:
        shape = read_shape(config, recipe.model.name)
    except UnknownArchitectureError as error:
        say(f"plan: not made. {error}")
        micro = _unplanned(recipe, METHODS[method])
        return _settled(recipe, micro, recipe.run.gradient_checkpointing is True), {}, None
    plan = make_plan(recipe, shape, rows_of(prepared), machine_of(device), method=method, engine=this_engine())
    for line in plan.lines():
        say(line)
    if not plan.fits:
        raise plan.error()
    recompute = fit.IN_RECIPE[plan.setting.checkpointing]
    reasons = {"micro_batch": plan.why, "gradient_checkpointing": plan.why}
    if plan.steps_chosen:
        reasons[STEPS] = plan.why
    return _settled(recipe, plan.micro_batch, recompute, plan.steps_chosen), reasons, plan


def disk_gib(plan: Plan | None) -> float:
    """What the run will write, with as much again for a save beside the last one; half a GiB where there is no plan."""
    return 0.5 if plan is None else 0.1 + 2 * plan.disk / 2**30


def smallest_change(plan: Plan | None) -> str:
    """What would save most memory at least cost, for a run that does not fit after all; or nothing."""
    if plan is None:
        return ""
    setting, rows = plan.setting, plan.setting.micro_batch
    if setting.generation is not None:  # groups are whole in an update; what the plan chose would be chosen again
        rows *= setting.accumulation
        said = setting.generation.said or "steps"
        setting = replace(setting, generation=replace(setting.generation, said=said, steps=setting.steps))
    work = fit.Workload(plan.shape, plan.rows.lengths[:64], rows, plan.machine.rate, plan.method)
    found = fit.smallest_changes(work, setting, int(0.9 * plan.memory.total), most=1)
    return found[0].text() if found else ""


def rows_of(prepared: Prepared) -> Rows:
    """Exact lengths of the audited rows."""
    lengths = [len(row.input_ids) for row in prepared.train]
    supervised = max((row.supervised for row in prepared.train), default=0)
    longest = max((len(row.input_ids) for row in prepared.eval), default=0)
    prompt = max((len(row.input_ids) - row.supervised for row in prepared.train), default=0)
    pairs = tuple(_laid_down(pair) for pair in getattr(prepared, "train_pairs", ()))
    rows = Rows(lengths, len(lengths), max(lengths, default=0), supervised, longest, "all rows", prompt, pairs)
    if isinstance(prepared, PreparedStream):
        top, count = prepared.max_length, prepared.updates * prepared.rows_per_update
        lengths = lengths * -(-SAMPLED // len(lengths)) + [top] * LONGEST_ROWS  # which may meet in one micro-batch
        return Rows(lengths, count, top, top, longest, "the first rows of the stream")
    if not isinstance(prepared, PreparedTask):
        return rows
    if prepared.outputs:
        return replace(rows, labels=prepared.outputs)
    parts: list[list[Any]] = [list(prepared.train), list(prepared.eval)]
    train, held_out = ([len(row.target) for row in part] for part in parts)
    return replace(rows, targets=tuple(train), target=max(train), eval_target=max(held_out, default=0))


def _laid_down(pair: PairTokens) -> int:
    """Tokens of a pair in a batch without padding: its prompt lies there once, but for the last token."""
    return pair.tokens - (len(pair.prompt) - 1 if len(pair.prompt) > WORTH_SHARING else 0)


def machine_of(device: Hardware) -> Machine:
    """What this process may use of its device."""
    engine = this_engine()
    processes, together = engine.processes, engine.per_machine
    if device.device == "cpu":
        cpu = machine.this_cpu(base=int(hardware.memory_gib(device) * 2**30) + machine.TRL)
        rate = replace(cpu.rate, flops=cpu.rate.flops / together)  # which share the cores
        return replace(cpu, name=device.name, budget=cpu.budget // together, rate=rate)
    # Free memory differs a little between the cards of one run, and all ranks must choose the same.
    size = hardware.free_gpu_bytes() if processes == 1 else int((device.memory_gib - 0.7) * 2**30)
    budget = int(size * (1 - machine.SPARED))
    rate = speed.card_rate(device.memory_gib, device.name, ASSUMED_NETWORK if engine.machines > 1 else 0.0)
    host = machine.free_memory() if engine.offload else 0
    return Machine("cuda", device.name, device.count, budget, rate, host=host)


def _settled(recipe: Recipe, micro_batch: int, recompute: bool | int | str, steps: int = 0) -> Recipe:
    run = recipe.run.model_copy(update={"micro_batch": micro_batch, "gradient_checkpointing": recompute})
    trainer = recipe.trainer | ({STEPS: steps} if steps else {})
    return recipe.model_copy(update={"run": run, "trainer": trainer})


def _unplanned(recipe: Recipe, method: Method) -> int:
    if recipe.run.micro_batch != "auto":
        return recipe.run.micro_batch
    sizes = fit.micro_batches(max(1, recipe.run.effective_batch // world_size()))
    allowed = [size for size in sizes if size * method.sequences <= LARGEST_UNPLANNED and size >= method.least]
    return max(allowed, default=sizes[-1])
