"""Whether a recipe can be trained under the engine that its launcher was given, before anything is read or loaded.

Each refusal names the line to change. Sources: accelerate's AcceleratorState and fsdp_utils (1.15), transformers'
Trainer (5.23), peft's notes on FSDP and DeepSpeed, and runs of our own (tests/test_engines.py).
"""

import importlib.util

from lorasmith.engine import DDP, FSDP1, FSDP2, SINGLE, ZERO, ZERO2, ZERO3, Engine
from lorasmith.errors import RecipeError
from lorasmith.recipe import Recipe

FOLDER = "accelerate_configs"
KNOWN = (SINGLE, DDP, FSDP2, ZERO2, ZERO3)
GENERATING = ("grpo",)
SHARDED_METHODS = ("lora", "rslora", "dora")  # of adapters, shown to train alike sharded and whole
BITSANDBYTES = ("8bit", "paged", "bnb", "lion", "ademamix")  # in the names of its optimizers
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}


def check_engine(engine: Engine, recipe: Recipe, method: str, here: bool = True) -> None:
    """Refuse what would fail, hang or train something else under this engine.

    Args:
        method: The training script.
        here: Whether it is to run on this machine, with the packages that are installed.

    Raises:
        RecipeError: With the line to change.
    """
    if engine.kind == FSDP1:
        raise _wrong("fsdp_config.fsdp_version is `1`", "expected 2", "Write fsdp_version: 2")
    if engine.kind not in KNOWN:
        known = f"{DDP}, {FSDP2}, {ZERO2} or {ZERO3}"
        raise _wrong(f"the engine is {engine.kind}", f"expected {known}", f"Take one of {FOLDER}/")
    if engine.cpu:
        check_on_cpus(engine)
    _check_batch(engine, recipe)
    _check_numbers(engine, recipe)
    if engine.kind == FSDP2:
        _check_fsdp(engine)
    if engine.kind.startswith(ZERO):
        _check_deepspeed(engine, recipe, here)
    if engine.context > 1:
        _check_context(engine, recipe, method)
    if engine.shards_weights:
        _check_sharded(engine, recipe, method)


def check_on_cpus(engine: Engine) -> None:
    """Refuse what needs GPUs; whether there are any, a launcher of several processes does not say.

    Raises:
        RecipeError: With the line to change.
    """
    if engine.kind.startswith(ZERO):
        raise _wrong(f"{engine.kind} on CPUs", "DeepSpeed needs GPUs", f"Take {FOLDER}/cpu_2_processes_fsdp2.yaml")
    if engine.context > 1:
        size = f"parallelism_config_cp_size is `{engine.context}` on CPUs"
        raise _wrong(size, "torch's ring attention needs GPUs", "Write parallelism_config_cp_size: 1")
    if engine.offload:
        raise _wrong(
            "fsdp_offload_params is `true` on CPUs",
            "the weights are in the computer's memory already",
            "Write fsdp_offload_params: false",
        )


def _wrong(found: str, expected: str, mend: str) -> RecipeError:
    return RecipeError(f"accelerate config: {found}; {expected}. {mend}.")


def _check_batch(engine: Engine, recipe: Recipe) -> None:
    """Rows of an update must divide among the processes that have rows of their own."""
    effective, wanted, shares = recipe.run.effective_batch, recipe.run.micro_batch, engine.replicas
    one = shares * (1 if wanted == "auto" else int(wanted))
    if effective % one == 0:
        return
    mend = f"run.effective_batch={-(-effective // one) * one}"
    if effective % shares == 0:
        share = effective // shares
        mend = f"run.micro_batch={max(size for size in range(1, min(share, int(wanted)) + 1) if share % size == 0)}"
    processes = [f"{shares} processes"] if shares > 1 else []
    rows = [f"run.micro_batch `{wanted}`"] if wanted != "auto" else []
    raise RecipeError(
        f"run.effective_batch is `{effective}`; expected a multiple of {' x '.join(processes + rows)}. Write {mend}."
    )


def _check_numbers(engine: Engine, recipe: Recipe) -> None:
    """What the recipe decides, the config may not decide otherwise."""
    accumulated = engine.setting("gradient_accumulation_steps")
    if accumulated not in (None, "auto", "1", 1):
        raise _wrong(
            f"gradient_accumulation_steps is `{accumulated}`",
            "it follows from run.effective_batch",
            "Take the line out, or write auto under deepspeed_config",
        )
    precision = str(engine.setting("mixed_precision", "no"))
    if precision not in ("no", "None") and PRECISIONS.get(precision) != recipe.model.dtype:
        raise _wrong(
            f"mixed_precision is `{precision}`",
            f"the recipe's model.dtype is `{recipe.model.dtype}`",
            "Take the line out: model.dtype decides",
        )
    for name in ("tp", "sp"):
        size = int(engine.setting(f"parallelism_config_{name}_size", 1) or 1)
        if size > 1:
            raise _wrong(
                f"parallelism_config_{name}_size is `{size}`",
                "adapters are trained under data and context parallelism alone",
                "Write 1",
            )


def _check_fsdp(engine: Engine) -> None:
    wrap, kind = engine.setting("fsdp_auto_wrap_policy"), engine.setting("fsdp_state_dict_type")
    if wrap not in (None, "TRANSFORMER_BASED_WRAP"):
        raise _wrong(
            f"fsdp_auto_wrap_policy is `{wrap}`",
            "expected TRANSFORMER_BASED_WRAP: one unit a block of the model",
            "Write fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP",
        )
    if kind not in (None, "FULL_STATE_DICT"):
        raise _wrong(
            f"fsdp_state_dict_type is `{kind}`",
            "expected FULL_STATE_DICT: an adapter is one file",
            "Write fsdp_state_dict_type: FULL_STATE_DICT",
        )
    if engine.setting("fsdp_activation_checkpointing"):
        raise _wrong(
            "fsdp_activation_checkpointing is `true`",
            "run.gradient_checkpointing decides",
            "Take the line out",
        )


def _check_deepspeed(engine: Engine, recipe: Recipe, here: bool) -> None:
    file = engine.setting("deepspeed_config_file")
    if file not in (None, "none", "None"):
        raise _wrong(
            f"deepspeed_config_file is `{file}`",
            "what stands there is not checked",
            f"Write its settings under deepspeed_config, as in {FOLDER}/deepspeed_zero3.yaml",
        )
    clipping = engine.setting("gradient_clipping")
    if clipping not in (None, "auto", "none"):
        raise _wrong(f"gradient_clipping is `{clipping}`", "trainer.max_grad_norm decides", "Write auto")
    if engine.kind == ZERO3 and not engine.setting("zero3_save_16bit_model"):
        raise _wrong(
            "zero3_save_16bit_model is `false`",
            "the adapter would not be gathered for saving",
            "Write zero3_save_16bit_model: true",
        )
    if engine.kind == ZERO3 and recipe.model.quantization != "none":
        raise _wrong(
            f"{engine.kind} with model.quantization `{recipe.model.quantization}`",
            "it shards unquantized weights",
            f"Take {FOLDER}/fsdp2.yaml, or write model.quantization=none",
        )
    if here and importlib.util.find_spec("deepspeed") is None:
        raise _wrong(f"{engine.kind}, and deepspeed is not installed", "expected it", "pip install deepspeed")


def _check_context(engine: Engine, recipe: Recipe, method: str) -> None:
    size = f"parallelism_config_cp_size is `{engine.context}`"
    if engine.kind != FSDP2:
        raise _wrong(
            f"{size} under {engine.kind}", f"accelerate offers it under {FSDP2}", "Write distributed_type: FSDP"
        )
    if method != "sft":
        raise _wrong(f"{size} for {method}.py", "rows of sft.py alone are split", f"Take {FOLDER}/fsdp2.yaml")
    if recipe.trainer.get("packing") or recipe.speed.padding_free:
        raise _wrong(
            size, "rows are padded then", "Write speed.padding_free=false trainer.packing=false into the recipe"
        )
    if recipe.model.attention not in ("auto", "sdpa"):
        raise _wrong(
            f"{size} with model.attention `{recipe.model.attention}`", "expected sdpa", "Write model.attention=sdpa"
        )


def _check_sharded(engine: Engine, recipe: Recipe, method: str) -> None:
    """What cannot be trained where no process has the whole model."""
    if method in GENERATING:
        raise _wrong(
            f"{engine.kind} for {method}.py",
            "it would gather the whole model for each token that is generated",
            f"Take {FOLDER}/multi_gpu.yaml",
        )
    if recipe.model.quantization == "int8":
        raise _wrong(
            f"{engine.kind} with model.quantization `int8`",
            "8-bit weights cannot be sharded",
            f"Write model.quantization=nf4, or take {FOLDER}/multi_gpu.yaml",
        )
    if recipe.adapter.method not in SHARDED_METHODS:
        raise _wrong(
            f"{engine.kind} with adapter.method `{recipe.adapter.method}`",
            f"expected {', '.join(SHARDED_METHODS[:-1])} or {SHARDED_METHODS[-1]}",
            f"Write adapter.method=lora, or take {FOLDER}/multi_gpu.yaml",
        )
    for setting, given in (
        ("model.add_tokens", recipe.model.add_tokens),
        ("adapter.options.modules_to_save", recipe.adapter.options.get("modules_to_save")),
    ):
        if given:
            raise _wrong(
                f"{engine.kind} with {setting}",
                "peft's copies of embedding and head cannot be sharded",
                f"Take {setting} out, or take {FOLDER}/multi_gpu.yaml",
            )
    optimizer = str(recipe.trainer.get("optim", ""))
    if engine.kind == FSDP2 and any(word in optimizer for word in BITSANDBYTES):
        raise _wrong(
            f"{engine.kind} with trainer.optim `{optimizer}`",
            "bitsandbytes' optimizers know no sharded weights",
            "Take trainer.optim out: the states are shared out",
        )
