"""The engines that several GPUs offer for a run, each of them planned, and the one to take."""

from dataclasses import dataclass, replace

from lorasmith.engine import DDP, FSDP2, SINGLE, ZERO, Engine
from lorasmith.engine_checks import check_engine
from lorasmith.errors import RecipeError
from lorasmith.memory.machine import Machine
from lorasmith.memory.plans import Plan, make_plan
from lorasmith.memory.setting import Rows
from lorasmith.memory.shape import Shape
from lorasmith.memory.weights import GIB
from lorasmith.recipe import Recipe

# By file of accelerate_configs/, those that ask for least first: no more packages, then no more of the computer.
ENGINES = {
    "multi_gpu": (DDP, False),
    "fsdp2": (FSDP2, False),
    "deepspeed_zero2": (f"{ZERO}-2", False),
    "fsdp2_offload": (FSDP2, True),
    "deepspeed_zero3": (f"{ZERO}-3", False),
    "deepspeed_zero3_offload": (f"{ZERO}-3", True),
}
ALIKE = 0.97  # of the best speed, within which what asks for less is taken
PORT = 29500  # where the processes of several machines meet, torch's own default


@dataclass(frozen=True, slots=True)
class Offer:
    """One engine.

    Attributes:
        config: Its file in accelerate_configs/.
        plan: None where the engine cannot train this.
        why: Why it cannot.
    """

    config: str
    engine: Engine
    plan: Plan | None
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether the run fits."""
        return self.plan is not None and self.plan.fits

    @property
    def speed(self) -> float:
        """Tokens/s of all processes together."""
        return 0.0 if self.plan is None else self.plan.speed * self.engine.processes

    def launch(self) -> str:
        """The command that its script's name follows."""
        if self.engine.processes == 1:
            return "accelerate launch"
        command = f"accelerate launch --config_file accelerate_configs/{self.config}.yaml"
        if self.engine.machines > 1:
            command += f" --num_machines {self.engine.machines} --machine_rank RANK --main_process_ip FIRST_MACHINE"
            command += f" --main_process_port {PORT}"  # the configs let one machine choose a free one
        return f"{command} --num_processes {self.engine.processes}"


def offers(
    recipe: Recipe, shape: Shape, rows: Rows, machine: Machine, machines: int = 1, method: str = "sft"
) -> list[Offer]:
    """Every engine for all of a machine's devices, planned.

    Args:
        machines: Of its like.

    Raises:
        RecipeError: If the rows of an update cannot be shared out evenly.
    """
    processes = machine.count * machines
    kinds = ENGINES if processes > 1 else {"one_gpu": (SINGLE, False)}
    check_engine(Engine(DDP, processes, machines), recipe, method)  # any engine shares out the rows of an update
    found = []
    for config, (kind, offload) in kinds.items():
        engine = Engine(kind, processes, machines, machine.device == "cpu", offload)
        why = cannot(engine, recipe, method)
        plan = None if why else make_plan(recipe, shape, rows, machine, method=method, engine=engine)
        found.append(Offer(config, engine, plan, why))
    return found


def cannot(engine: Engine, recipe: Recipe, method: str) -> str:
    """Why an engine cannot train a recipe, or nothing."""
    asked = {"zero3_save_16bit_model": True}
    try:
        check_engine(replace(engine, settings=asked), recipe, method, here=False)
    except RecipeError as error:
        return str(error).partition("; ")[2].partition(". ")[0]
    return ""


def chosen(found: list[Offer]) -> Offer:
    """The fastest that fits, what asks for least among those as fast; else the one that lacks least."""
    fitting = [one for one in found if one.fits]
    if fitting:
        best = max(one.speed for one in fitting)
        return next(one for one in fitting if one.speed >= ALIKE * best)
    planned = [one for one in found if one.plan is not None]
    return min(planned, key=lambda one: one.plan.needed if one.plan is not None else 0)


def table(found: list[Offer], best: Offer) -> list[str]:
    """The engines, a line each."""
    wide = max(len(name_of(one.engine)) for one in found)
    links = next(one.plan.machine.rate.links for one in found if one.plan is not None)
    how = f"{links.name} at {links.device / 1e9:g} GB/s"
    how += f", {links.network / 1e9:g} GB/s between machines" if links.network else ""
    lines = [
        f"engines ({how}, assumed):",
        f"  {'':<{wide}}  GiB a card  GiB of the computer  tokens/s  accelerate_configs/",
    ]
    for one in found:
        if one.plan is None:
            lines.append(f"  {name_of(one.engine):<{wide}}  {one.why}")
            continue
        host = f"{one.plan.host / GIB:.1f}" if one.plan.host else ""
        speed = f"{one.speed:,.0f}" if one.fits else ""
        told = f"{one.config}.yaml" if one.fits else "does not fit"
        told += "  <- proposed" if one is best and one.fits else ""
        lines.append(f"  {name_of(one.engine):<{wide}}{one.plan.needed / GIB:>12.1f}{host:>21}{speed:>10}  {told}")
    return lines


def name_of(engine: Engine) -> str:
    """An engine without its processes."""
    return engine.kind + " with offload" * engine.offload
