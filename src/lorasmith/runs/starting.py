"""How every training script starts: a wrong recipe or engine is told before torch is imported."""

import argparse
from collections.abc import Callable

from lorasmith import offline
from lorasmith.console import say
from lorasmith.engine import this_engine
from lorasmith.engine_checks import check_engine
from lorasmith.errors import UnreachableError
from lorasmith.listening import listener
from lorasmith.recipe import Recipe, load_recipe
from lorasmith.recipe_sections import recipe_text
from lorasmith.runs.ending import quiet


def start(arguments: argparse.Namespace, method: str, train: Callable[[Recipe, argparse.Namespace], None]) -> None:
    """Read and check the recipe, and train; a dry run that needs a hub out of reach prints what was asked for.

    Args:
        arguments: Of `training_parser`.
        method: The training script.
        train: Takes the recipe as requested, and the arguments.

    Raises:
        RecipeError: If the recipe is wrong, or cannot be trained under this engine.
        UnreachableError: If something is missing here and the hub is out of reach.
    """
    listener.listen()
    requested = load_recipe(arguments.recipe, arguments.overrides, method)
    check_engine(this_engine(), requested, method)
    quiet(arguments.offline)
    try:
        if offline.is_offline() and not arguments.dry_run:
            offline.check_files(requested)
        train(requested, arguments)
    except UnreachableError as error:
        if not arguments.dry_run:
            raise
        say(f"not checked: {error}")
        say(recipe_text(requested))
