"""Whether a run fits, how to make it fit, and how long it takes, before anything is downloaded or loaded.

    python scripts/plan.py RECIPE [section.key=value ...] [--gpu 8|12|16|24|80|auto|cpu] [--gpus 2x24] [--max] [--write]

The recipe's first line says which script it is for, or --method does. Several GPUs are planned for under every engine,
and the fastest that fits is proposed; --engine plans for that of one accelerate config. --write changes the recipe, by
the first of the ways shown, into one that fits. Exit code 3 when it does not fit.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

from lorasmith.console import say
from lorasmith.engine import read_engine
from lorasmith.engine_checks import check_engine
from lorasmith.errors import LorasmithError, RecipeError
from lorasmith.memory import facts, machine, offers, sheet
from lorasmith.memory.lengths import with_length
from lorasmith.memory.machine import Machine
from lorasmith.memory.methods import METHODS
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows
from lorasmith.memory.shape import Shape
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.weights import GIB
from lorasmith.recipe import Recipe, load_recipe
from lorasmith.recipe_file import rewrite
from lorasmith.recipe_method import method_of, methods_taking
from lorasmith.runs.ending import quiet, run_script
from lorasmith.upstream import CONFIGS


def main() -> None:
    arguments = parse_arguments()
    recipe, method = read(arguments)
    quiet()
    from lorasmith.data.lengths import sampled_rows

    target, machines = wanted_machine(arguments)
    shape = read_shape(*facts.find_config(recipe.model.name, recipe.model.revision))
    settled, _ = with_length(recipe, shape.positions, method)
    # Prompts that are not here are as long as the recipe says, not as what completions leave of the model's positions.
    rows = sampled_rows(recipe if METHODS[method].generates else settled, method)
    found = planned(arguments, settled, shape, rows, target, machines, method)
    best = offers.chosen(found)
    plan = best.plan
    assert plan is not None
    engines = ["", *offers.table(found, best)] if len(found) > 1 else []
    for line in [*sheet.table(plan), "", *plan.lines(), *(sheet.limits(plan) if arguments.max else []), *engines]:
        say(line)
    command = " ".join([f"scripts/{method}.py", str(arguments.recipe), *arguments.overrides])
    if plan.fits:
        say(f"next: {best.launch()} {command}")
        return
    for line in sheet.ways(plan):
        say(line)
    if not (arguments.write and plan.proposals):
        raise plan.error()
    changes = dict(override.split("=", 1) for override in arguments.overrides) | plan.proposals[0].texts()
    rewrite(arguments.recipe, changes)
    load_recipe(arguments.recipe, [], method)
    say(f"written to {arguments.recipe}: {plan.proposals[0].text()}")
    said = f" --method {method}" if arguments.method else ""
    say(f"next: python scripts/plan.py {arguments.recipe}{said}")


def read(arguments: argparse.Namespace) -> tuple[Recipe, str]:
    """The recipe, and the training script that it is for."""
    path, overrides = arguments.recipe, arguments.overrides
    named = arguments.method or method_of(path)
    method = named or "sft"
    try:
        return load_recipe(path, overrides, method), method
    except RecipeError as error:
        others = [] if named else methods_taking(path, overrides)
        if not others:
            raise
        ways = " or ".join(f"--method {one}" for one in others)
        raise RecipeError(f"{error} It is no recipe of sft.py; say whose: {ways}.") from None


def planned(
    arguments: argparse.Namespace,
    recipe: Recipe,
    shape: Shape,
    rows: Rows,
    target: Machine,
    machines: int,
    method: str,
) -> list[offers.Offer]:
    """The plan of every engine that the machine offers, or of that of --engine alone."""
    if arguments.engine is None:
        return offers.offers(recipe, shape, rows, target, machines, method)
    asked = arguments.gpus or (target.device == "cuda" and arguments.gpu != "auto")
    engine = read_engine(arguments.engine, target.count * machines if asked else None)
    engine = replace(engine, machines=max(engine.machines, machines))
    check_engine(engine, recipe, method, here=False)
    plan = make_plan(recipe, shape, rows, target, method=method, engine=engine)
    return [offers.Offer(arguments.engine.stem, engine, plan)]


def wanted_machine(arguments: argparse.Namespace) -> tuple[Machine, int]:
    """The machine to plan for, and how many of its like there are."""
    host = int((arguments.ram or 0) * GIB)
    if arguments.gpus:
        found = re.fullmatch(r"(?:(\d+)x)?(\d+)x(\d+(?:\.\d+)?)", arguments.gpus)
        machines, cards = (int(found[1] or 1), int(found[2])) if found else (0, 0)
        if not found or machines < 1 or cards < 1:
            raise LorasmithError(
                f"--gpus is `{arguments.gpus}`; expected a number of cards and their GiB, such as 2x24, or machines, "
                "cards of each and their GiB, such as 2x8x80."
            )
        network = arguments.network if machines > 1 else 0.0
        return replace(machine.a_card(float(found[3]), cards, network=network), host=host), machines
    if arguments.gpu == "auto" and not (arguments.engine and read_engine(arguments.engine).cpu):
        here = machine.this_machine()
        return (replace(here, host=host) if host else here), 1
    if arguments.gpu in ("auto", "cpu"):
        return machine.this_cpu(), 1
    if not re.fullmatch(r"\d+(\.\d+)?", arguments.gpu) or not float(arguments.gpu):
        raise LorasmithError(f"--gpu is `{arguments.gpu}`; expected its memory in GiB, such as 24, or auto, or cpu.")
    return replace(machine.a_card(float(arguments.gpu)), host=host), 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="set a key of the recipe")
    parser.add_argument(
        "--method", choices=tuple(CONFIGS), help="the training script; default: as the recipe says, sft"
    )
    parser.add_argument("--gpu", default="auto", help="GiB of the card; auto: this machine's GPU or CPU; cpu")
    parser.add_argument(
        "--gpus", metavar="NxGIB", help="several cards, such as 2x24; machines, cards of each and GiB, such as 2x8x80"
    )
    parser.add_argument("--engine", type=Path, metavar="CONFIG", help="the accelerate config to plan for; default: all")
    parser.add_argument("--ram", type=float, metavar="GIB", help="of each computer, free; default: not asked about")
    parser.add_argument(
        "--network", type=float, default=100, metavar="GBIT", help="a second, between machines; default: 100, assumed"
    )
    parser.add_argument("--max", action="store_true", help="the largest model, row and micro-batch for this machine")
    parser.add_argument("--write", action="store_true", help="change the recipe into one that fits")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
