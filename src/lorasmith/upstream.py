"""The fields of installed config dataclasses, read from their source.

Importing trl takes 5 to 14 s, and a typo in a recipe should not wait for it. The config classes of trl, transformers
and peft are plain dataclasses, so their fields, types, choices and defaults stand in the source as literals.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasmith.errors import LorasmithError


@dataclass(frozen=True)
class Field:
    """One field of a config dataclass.

    Attributes:
        types: Names in the annotation's union, such as ("int", "None"); generic arguments are dropped.
        default: The literal default, or None when it is computed.
        choices: The strings allowed, when the source lists them.
    """

    name: str
    types: tuple[str, ...]
    default: Any
    choices: tuple[str, ...] = ()


def package_folder(package: str) -> Path:
    """Where a package is installed, without importing it.

    Raises:
        LorasmithError: If it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise LorasmithError(f"{package} is not installed. Install with: pip install -c constraints.txt -e .")
    return Path(found.submodule_search_locations[0])


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    package, _, rest = module.partition(".")
    path = package_folder(package).joinpath(*rest.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def config_fields(*classes: tuple[str, str]) -> dict[str, Field]:
    """Fields of a dataclass and its bases, given as (module, class) pairs from the base downwards."""
    fields: dict[str, Field] = {}
    for module, name in classes:
        for statement in _classes(module)[name].body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                field = _field(statement.target.id, statement)
                fields[field.name] = field
    return fields


HEADS = ("score", "classifier", "qa_outputs")  # transformers' names of a head; peft trains it whole
# What may stand between the blocks and the head of a model, and is drawn anew where the base has none.
BEFORE_HEADS = ("pooler", "pre_classifier", "head")
UNQUANTIZED = tuple(rf"(.*\.)?{name}" for name in (*HEADS, *BEFORE_HEADS))  # as transformers reads module names


@dataclass(frozen=True)
class Task:
    """What a model is loaded for.

    Attributes:
        peft: peft's name.
        auto: transformers' class that loads such a model.
        pipeline: transformers' name of the pipeline that uses it, and the hub's.
    """

    peft: str
    auto: str
    pipeline: str


CAUSAL = Task("CAUSAL_LM", "AutoModelForCausalLM", "text-generation")
# The training scripts over transformers' own trainer.
TASKS = {
    "text_classification": Task("SEQ_CLS", "AutoModelForSequenceClassification", "text-classification"),
    "token_classification": Task("TOKEN_CLS", "AutoModelForTokenClassification", "token-classification"),
    "question_answering": Task("QUESTION_ANS", "AutoModelForQuestionAnswering", "question-answering"),
    "seq2seq": Task("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", "text2text-generation"),
}


def renamed_keys(headless: str, whole: str) -> dict[str, str]:
    """What `from_pretrained` has to rename in a language model's files, as its key_mapping of regular expressions.

    LlamaForQuestionAnswering and those like it call the model `transformer`, and the files call it `model`.

    Args:
        headless: base_model_prefix of the class without a head; `whole`: of the class that the files are loaded into.
    """
    return {r"^model\.": "transformer."} if (headless, whole) == ("model", "transformer") else {}


# The config of each training script, trl's or ours over transformers': module and class.
CONFIGS = {
    "sft": ("trl.trainer.sft_config", "SFTConfig"),
    "dpo": ("trl.trainer.dpo_config", "DPOConfig"),
    "kto": ("trl.trainer.kto_config", "KTOConfig"),
    "orpo": ("trl.experimental.orpo.orpo_config", "ORPOConfig"),
    "cpo": ("trl.experimental.cpo.cpo_config", "CPOConfig"),
    "reward": ("trl.trainer.reward_config", "RewardConfig"),
    "grpo": ("trl.trainer.grpo_config", "GRPOConfig"),
    **dict.fromkeys(TASKS, ("lorasmith.tasks.config", "TaskConfig")),
    "seq2seq": ("lorasmith.tasks.config", "Seq2SeqConfig"),
}


def trainer_fields(method: str) -> dict[str, Field]:
    """Fields of the trl config of one training script, a name in CONFIGS.

    Raises:
        LorasmithError: If the installed trl has no such config, as its experimental ones may come to.
    """
    bases = [("transformers.training_args", "TrainingArguments")]
    bases += [] if method in TASKS else [("trl.trainer.base_config", "_BaseConfig")]
    bases += [("transformers.training_args_seq2seq", "Seq2SeqTrainingArguments")] if method == "seq2seq" else []
    module, name = CONFIGS[method]
    try:
        return config_fields(*bases, CONFIGS[method])
    except (FileNotFoundError, KeyError):
        have = importlib.metadata.version("trl")
        raise LorasmithError(
            f"trl {have} has no {name} in {module}: it has moved. Install the tested version: pip install -c "
            "constraints.txt -e ."
        ) from None


def offloads(method: str) -> bool:
    """Whether the trl config of a training script can keep activations in the computer's memory."""
    return "activation_offloading" in trainer_fields(method)


@functools.cache
def peft_methods() -> dict[str, str]:
    """PEFT method name in lower case, such as "lora" or "ia3", to the module and class of its config."""
    methods = {}
    for path in sorted((package_folder("peft") / "tuners").glob("*/config.py")):
        module = f"peft.tuners.{path.parent.name}.config"
        for name, node in _classes(module).items():
            for kind in re.findall(r"peft_type = PeftType\.(\w+)", ast.unparse(node)):
                methods[kind.lower()] = f"{module}:{name}"
    return methods


def peft_fields(method: str) -> dict[str, Field]:
    """Fields of the PEFT config of a method named as in `peft_methods`."""
    module, _, name = peft_methods()[method].partition(":")
    return config_fields((module, name))


def _field(name: str, statement: ast.AnnAssign) -> Field:
    types = _union(statement.annotation)
    default: Any = None
    choices: list[str] = []
    if isinstance(statement.value, ast.Call):
        for keyword in statement.value.keywords:
            if keyword.arg == "default":
                default = _literal(keyword.value)
            elif keyword.arg == "metadata":
                choices += [str(choice) for choice in _metadata_choices(keyword.value)]
    elif statement.value is not None:
        default = _literal(statement.value)
    for kind in types:
        choices += _enum_values(kind)
    return Field(name, types, default, tuple(choices))


def _union(annotation: ast.expr) -> tuple[str, ...]:
    """`Optional[Union[list[str], int]] | None` as ("list", "int", "None")."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _union(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp):
        return _union(annotation.left) + _union(annotation.right)
    if isinstance(annotation, ast.Subscript):
        outer = ast.unparse(annotation.value).rpartition(".")[2]
        if outer in ("Optional", "Union"):
            inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
            types = tuple(kind for part in inner for kind in _union(part))
            return (*types, "None") if outer == "Optional" else types
        return (outer,)
    return (ast.unparse(annotation).rpartition(".")[2],)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _metadata_choices(metadata: ast.expr) -> list[str]:
    if isinstance(metadata, ast.Dict):
        for key, value in zip(metadata.keys, metadata.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "choices":
                return _literal(value) or []
    return []


@functools.cache
def _enum_values(name: str) -> list[str]:
    """The values of one of transformers' string enums, or none if `name` is not one."""
    for module in ("transformers.trainer_utils", "transformers.training_args"):
        node = _classes(module).get(name)
        if node is not None and any(ast.unparse(base).endswith("Enum") for base in node.bases):
            values = [_literal(item.value) for item in node.body if isinstance(item, ast.Assign)]
            return [value for value in values if isinstance(value, str)]
    return []
