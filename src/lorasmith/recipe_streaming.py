"""Checks of a recipe whose rows are streamed, or lie on a storage."""

import re
from typing import Any

from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import place_of
from lorasmith.recipe_file import Places, show


def check_streaming(method: str, recipe: Any, places: Places) -> None:
    """Check what `data.streaming` needs and does not go with, and that no address holds a password.

    Raises:
        RecipeError: At the first thing wrong.
    """
    data, trainer = recipe.data, recipe.trainer
    for name, addresses in (("train", [source for source, _ in data.sources]), ("eval", [data.eval or ""])):
        if any(re.match(r"[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@", address) for address in addresses):
            raise RecipeError(
                f"{place_of(places, ('data', name))}: data.{name} holds a password. Give it to the storage by its "
                "environment variables or its configuration file."
            )
    if not data.streaming:
        return
    if method != "sft":
        place = place_of(places, ("data", "streaming"))
        raise RecipeError(f"{place}: data.streaming is for sft.py; {method}.py reads all rows before it trains.")
    if int(trainer.get("max_steps") or -1) < 1:
        place = place_of(places, ("data", "streaming"))
        raise RecipeError(
            f"{place}: data.streaming needs trainer.max_steps: a stream does not say how many rows it has."
        )
    weighted = any(weight != 1 for _, weight in data.sources)
    refused: list[tuple[tuple[str, str], bool, str]] = [
        (("data", "eval_fraction"), data.eval_fraction > 0, "Set data.eval."),
        (("data", "train"), weighted, "Leave the weights out."),
        (("trainer", "packing"), bool(trainer.get("packing")), "Leave it out."),
        (
            ("trainer", "train_sampling_strategy"),
            trainer.get("train_sampling_strategy", "random") == "group_by_length",
            "Leave it out.",
        ),
        (("trainer", "dataloader_num_workers"), bool(trainer.get("dataloader_num_workers")), "Set 0."),
        (("trainer", "max_length"), "max_length" in trainer and trainer["max_length"] is None, "Set a number."),
    ]
    for key, wrong, mend in refused:
        if wrong:
            value = trainer[key[1]] if key[0] == "trainer" else getattr(data, key[1])
            shown = "with weights" if key == ("data", "train") else show(value)
            raise RecipeError(
                f"{place_of(places, key)}: {'.'.join(key)} is {shown}, which data.streaming does not go with. {mend}"
            )
