"""The longest row of a run, settled before it is planned: as the recipe says, else as the base model and trl allow."""

from lorasmith import upstream
from lorasmith.errors import ModelError
from lorasmith.memory.methods import METHODS
from lorasmith.recipe import Recipe


def with_length(recipe: Recipe, positions: int | None, method: str = "sft") -> tuple[Recipe, str]:
    """The recipe with its `trainer.max_length`, or in grpo.py its `data.max_prompt_length`, settled, and the reason.

    Args:
        positions: Longest row that the base model has positions for, if its config says.

    Raises:
        ModelError: If the recipe asks for more.
    """
    if method == "grpo":
        return _with_prompt_length(recipe, positions)
    if "max_length" in recipe.trainer:
        wanted = recipe.trainer["max_length"]
        if positions is not None and wanted is not None and wanted > positions:
            raise ModelError(f"trainer.max_length is `{wanted}`; the model has {positions} positions. Lower it.")
        return recipe, "as the recipe says"
    own = METHODS[method].padded
    length = int(upstream.trainer_fields(method if own else "sft")["max_length"].default)
    why = "the script's default" if own else "trl's default"
    if positions is not None and positions < length:
        length, why = positions, f"the model has {positions} positions"
    return recipe.model_copy(update={"trainer": {**recipe.trainer, "max_length": length}}), why


def _with_prompt_length(recipe: Recipe, positions: int | None) -> tuple[Recipe, str]:
    completion = completion_length(recipe)
    wanted, asked = recipe.data.max_prompt_length, f"trainer.max_completion_length ({completion})"
    if positions is not None and (wanted or 1) + completion > positions:
        both = f"data.max_prompt_length ({wanted}) and {asked}" if wanted else asked
        raise ModelError(f"{both} are more than the model's {positions} positions. Lower them.")
    if wanted is not None or positions is None:
        return recipe, "as the recipe says" if wanted else "the base model says no number of positions"
    data = recipe.data.model_copy(update={"max_prompt_length": positions - completion})
    return recipe.model_copy(update={"data": data}), f"the model has {positions} positions"


def completion_length(recipe: Recipe) -> int:
    """Tokens of the longest completion in grpo.py."""
    given = recipe.trainer.get("max_completion_length")
    return int(given or upstream.trainer_fields("grpo")["max_completion_length"].default)
