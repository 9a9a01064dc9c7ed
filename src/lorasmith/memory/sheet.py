"""A plan on the screen: the peak by part and moment, the ways to make it fit, and the largest that fits."""

from dataclasses import replace

from lorasmith.memory import facts, fit
from lorasmith.memory.peak import plan_memory
from lorasmith.memory.plans import Plan
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.weights import GIB

LONGEST_ROW = 1 << 22  # tokens that a search tries


def table(plan: Plan) -> list[str]:
    """Live tensors by part (columns) at each moment of a run (rows), in GiB, small ones in MiB, the peak marked."""
    setting, shape = plan.setting, plan.shape
    parts = list(dict.fromkeys(part for moment in plan.memory.moments.values() for part in moment))
    unit, size = ("GiB", GIB) if plan.memory.tensors >= GIB else ("MiB", 1 << 20)
    wide = [max(len(part), 6) + 2 for part in parts]
    base = setting.quantization if setting.quantization != "none" else setting.dtype
    bits = f"{plan.recipe.model.name}, {shape.parameters / 1e6:,.1f}M parameters, {base}"
    across = f"{len(setting.targets)} linear layers of {setting.adapted_layers} blocks"
    weights = setting.adapter_weights(shape)
    counted = f"{plan.rows.count // plan.method.sequences:,}"
    if plan.method.sequences > 1:
        counted += f" pairs, which are {plan.rows.count:,} sequences"
    rows = f"rows: {counted} of {plan.rows.mean:,.0f} tokens, the longest {setting.longest:,}"
    if made := setting.generation:
        prompt = plan.rows.mean - made.completion
        rows = f"prompts: {counted} of {prompt:,.0f} tokens, the longest {made.prompt:,}"
    lines = [
        f"{bits}; {plan.recipe.adapter.method} rank {setting.rank} on {across}, {weights:,} weights",
        f"{rows} ({plan.rows.why})",
        f"machine: {plan.machine.count} x {plan.machine.name}"
        + (f", {setting.shared.label}" if setting.shared.processes > 1 else ""),
        "",
        f"{unit:<12}" + "".join(f"{part:>{width}}" for part, width in zip(parts, wide, strict=True)) + f"{'all':>8}",
    ]
    for name, moment in plan.memory.moments.items():
        cells = "".join(f"{moment.get(part, 0) / size:>{width}.2f}" for part, width in zip(parts, wide, strict=True))
        peak = "  <- peak" if name == plan.memory.moment else ""
        lines.append(f"{name:<12}{cells}{sum(moment.values()) / size:>8.2f}{peak}")
    return lines


def ways(plan: Plan) -> list[str]:
    """What makes it fit, a line each, those that train the same thing first."""
    if not plan.proposals:
        return ["nothing that keeps this model makes it fit; smaller ones: python scripts/plan.py RECIPE --max"]
    lines = ["the smallest changes that make it fit, those that train the same thing first:"]
    for one in plan.proposals:
        same = "" if one.trains_same else "; trains something else"
        need = (one.memory.total + plan.machine.base) / GIB
        lines.append(f"  {one.text()}  ({need:.2f} GiB, {one.speed:.0%} of the speed{same})")
    return lines


def limits(plan: Plan) -> list[str]:
    """The longest row, the largest micro-batch and the largest model of the family on this machine."""
    room = plan.machine.budget - plan.machine.base
    shape, setting = plan.shape, plan.setting
    recompute = "offload" if setting.checkpointing == "offload" else "all"
    # Every row is as long as the longest.
    frugal = replace(setting, checkpointing=recompute, lengths=(), pairs=())
    pair, least, made = plan.method.sequences, plan.method.least, setting.generation
    at_once = setting.generated

    def fits_row(tokens: int) -> bool:
        mixed = tokens if setting.mixed else 0
        if made is not None:
            longer = replace(made, completion=tokens, steps=at_once)
            alike = replace(frugal, longest=made.prompt + tokens, supervised=tokens, generation=longer)
            return plan_memory(shape, replace(alike, micro_batch=1, eval_longest=0)).total <= room
        alike = replace(frugal, longest=tokens, supervised=tokens, mixed=mixed, eval_longest=0, padded=False)
        one = replace(alike, micro_batch=least * pair)
        return plan_memory(shape, one).total <= room

    def fits_batch(rows: int) -> bool:
        fewer = made and replace(made, steps=max(1, at_once // rows))
        return plan_memory(shape, replace(frugal, micro_batch=rows * pair, generation=fewer)).total <= room

    positions = min(LONGEST_ROW, shape.positions or LONGEST_ROW) - (made.prompt if made else 0)
    row = fit.largest(fits_row, positions)
    batch = fit.largest(fits_batch, 4096)
    bound = ", all that the model has" if row == positions != LONGEST_ROW else ""
    how = "with checkpointing and otherwise as planned"
    what = f"completion, {at_once} at once and" if made else "row"
    lines = [f"at most, {how}:", f"  longest {what} at micro-batch {least}: {row:,} tokens{bound}"]
    lines.append(f"  micro-batch at rows of {setting.longest:,} tokens: {batch:,}")
    family, members = facts.family_of(plan.recipe.model.name, shape.kind)
    for bits in dict.fromkeys((setting.quantization, "nf4")):
        best = ""
        for member in members:
            other = read_shape(facts.known_models()[member])
            targets = other.targets(plan.recipe.adapter.target_modules)
            length = min(setting.longest, other.positions or setting.longest)
            sized = replace(frugal, targets=targets, adapted_layers=other.layers, longest=length)
            made_at_once = made and replace(made, steps=at_once)
            one = replace(sized, quantization=bits, micro_batch=least * pair, generation=made_at_once)
            if plan_memory(other, one).total <= room:
                best = f"{member} ({other.parameters / 1e9:.2f}B)"
        if members:
            lines.append(f"  largest {family} at {bits}, micro-batch {least}: {best or 'none of those known here'}")
    return lines
