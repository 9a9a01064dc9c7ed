"""The recipe's `task:`, what a model other than a language model is to give; checked against its script. No torch."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lorasmith.errors import RecipeError
from lorasmith.recipe_checks import place_of
from lorasmith.recipe_file import Places, show
from lorasmith.recipe_sections import Name, Section
from lorasmith.upstream import TASKS


def _weights(value: Any) -> Any:
    if isinstance(value, dict):
        if not value or not all(isinstance(one, int | float) and one > 0 for one in value.values()):
            raise ValueError("expected none, balanced, or labels with a weight above 0 each")
        return {str(name): float(weight) for name, weight in value.items()}
    return value


def _threshold(value: Any) -> Any:
    if value != "calibrated" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1):
        raise ValueError("expected calibrated, or a number above 0 and below 1")
    return value


class Task(Section):
    """What a classifier, tagger, answer finder or sequence-to-sequence model is to give."""

    problem: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = Field(
        "auto", description="text_classification: one label a row, several, or a number; auto: as the rows' labels say."
    )
    labels: list[Name] = Field([], description="Names of the labels in the order of the outputs; default: the rows'.")
    class_weights: Annotated[Literal["none", "balanced"] | dict[str, float], BeforeValidator(_weights)] = Field(
        "none", description="text_classification: of each label in the loss; balanced: rows / (labels x its rows)."
    )
    threshold: Annotated[float | Literal["calibrated"], BeforeValidator(_threshold)] = Field(
        0.5,
        description="text_classification: probability from which a label of several is given; calibrated: for each "
        "label that with the best F1 on the evaluation rows.",
    )
    stride: int = Field(128, ge=0, description="question_answering: tokens that two windows of a context share.")
    max_answer_length: int = Field(30, ge=1, description="question_answering: tokens of the longest answer.")
    prefix: str = Field(
        "", description="seq2seq: text before each source, such as T5's `translate English to German: `."
    )
    source_language: Name | None = Field(
        None, description="seq2seq: the tokenizer's name of the sources' language, such as en_XX (mBART, NLLB)."
    )
    target_language: Name | None = Field(None, description="seq2seq: the same of the targets, such as de_DE.")
    answered_rows: int | None = Field(
        None,
        ge=0,
        description="seq2seq: evaluation rows that base and adapter write for in the end, for BLEU, chrF and ROUGE; "
        "default: all; 0: none.",
    )


# Keys of `task:` by the scripts that read them.
READ_BY = {
    "problem": ("text_classification",),
    "labels": ("text_classification", "token_classification"),
    "class_weights": ("text_classification",),
    "threshold": ("text_classification",),
    "stride": ("question_answering",),
    "max_answer_length": ("question_answering",),
    "prefix": ("seq2seq",),
    "source_language": ("seq2seq",),
    "target_language": ("seq2seq",),
    "answered_rows": ("seq2seq",),
}
# Fields of transformers' Seq2SeqTrainingArguments that would do nothing, and what to write in their place.
SEQ2SEQ_OWNED = {
    "predict_with_generate": "Set task.answered_rows.",
    "sortish_sampler": "Set trainer.train_sampling_strategy: group_by_length.",
    "generation_config": "The model's own generation_config.json is used; set trainer.generation_num_beams and "
    "trainer.generation_max_length.",
}


def check_task(method: str, recipe: Any, places: Places) -> None:
    """Check that `task:` is read by the script, and that nothing of a language model's is asked of another.

    Raises:
        RecipeError: At the first thing wrong.
    """
    for name, scripts_of in READ_BY.items():
        if getattr(recipe.task, name) != Task.model_fields[name].default and method not in scripts_of:
            place, scripts = place_of(places, ("task", name)), " and ".join(f"{one}.py" for one in scripts_of)
            raise RecipeError(f"{place}: task.{name} is for {scripts}, not {method}.py. Drop it.")
    if method not in TASKS:
        return
    task, data = recipe.task, recipe.data
    if len(set(task.labels)) < len(task.labels):
        raise RecipeError(f"{place_of(places, ('task', 'labels'))}: task.labels has a label twice. Name each once.")
    if task.labels and task.problem == "regression":
        raise RecipeError(f"{place_of(places, ('task', 'labels'))}: task.labels with a regression. Drop one of them.")
    if isinstance(task.class_weights, dict) and task.labels and set(task.class_weights) - set(task.labels):
        unknown = min(set(task.class_weights) - set(task.labels))
        place = place_of(places, ("task", "class_weights"))
        raise RecipeError(f"{place}: task.class_weights has `{unknown}`; task.labels are {', '.join(task.labels)}.")
    for name, allowed in (("format", "auto"), ("train_on", "assistant")):
        has_format = name == "format" and method == "seq2seq" and data.format != "text"
        if getattr(data, name) != allowed and not has_format:
            place = place_of(places, ("data", name))
            raise RecipeError(f"{place}: data.{name} is {show(getattr(data, name))}; it is for sft.py. Drop it.")
    for name, instead in SEQ2SEQ_OWNED.items() if method == "seq2seq" else ():
        if name in recipe.trainer:
            raise RecipeError(f"{place_of(places, ('trainer', name))}: trainer.{name} is not set here. {instead}")
    if recipe.model.chat_template is not None:
        place = place_of(places, ("model", "chat_template"))
        raise RecipeError(f"{place}: model.chat_template is for language models, not {method}.py. Drop it.")
    if task.threshold == "calibrated" and data.eval is None and not data.eval_fraction:
        place = place_of(places, ("task", "threshold"))
        raise RecipeError(f"{place}: task.threshold `calibrated` needs rows. Set data.eval or data.eval_fraction.")
    longest = recipe.trainer.get("max_length", 512)
    if method == "question_answering" and longest is not None and task.stride >= longest:
        place = place_of(places, ("task", "stride"))
        raise RecipeError(
            f"{place}: task.stride is `{task.stride}`; expected less than trainer.max_length ({longest})."
        )
