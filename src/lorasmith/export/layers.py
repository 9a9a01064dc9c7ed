"""A model without weights that carries adapters, and peft's own arithmetic applied to one base tensor at a time."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from lorasmith.errors import DivergedError, ModelError
from lorasmith.upstream import CAUSAL, TASKS, renamed_keys

COMBINATIONS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"
)  # fmt: skip
EXPLODING = ("dare_linear", "dare_ties", "magnitude_prune")  # they prune A and B apart (EXPORT: loss 0.69 to 1.91)
Read = Callable[[str], torch.Tensor | None]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model with placeholders for weights: tensors of the right shapes that take four bytes each.

    Attributes:
        names: Of all its parameters, tied ones under each of their names.
        placeholders: Their identities, and the parameters, which keep these from being given to others.
    """

    model: PreTrainedModel
    names: frozenset[str]
    placeholders: dict[int, torch.nn.Parameter]


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens the model has embeddings for."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def kind_of(task: str) -> Any:
    """transformers' class for a task of `upstream.TASKS`; "": a language model."""
    return getattr(transformers, (TASKS[task] if task else CAUSAL).auto)


def has_head(task: str) -> bool:
    """Whether an adapter for a task brings a head, which stands in place of the layer that gives tokens."""
    return bool(task) and TASKS[task].peft not in ("CAUSAL_LM", "SEQ_2_SEQ_LM")


def skeleton(base: Path, rows: int, task: str = "", settings: dict[str, Any] | None = None) -> Skeleton:
    """The base without its weights.

    Args:
        rows: Embedding rows that the tokenizer needs; more than the model's are added.
        task: What it is for, a key of `upstream.TASKS`; "": a language model.
        settings: Of its configuration, such as num_labels.

    Raises:
        ModelError: If the base is quantized already.
    """
    config = AutoConfig.from_pretrained(base, **(settings or {}))
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{base}: is quantized already. Merge into the model that it was made from.")
    with init_empty_weights(include_buffers=False):
        # In 16 bit peft would round the adapter's matrices to that while it loads them.
        model: PreTrainedModel = kind_of(task).from_config(config, dtype=torch.float32)
    if rows > embedding_rows(model):
        model.resize_token_embeddings(rows, mean_resizing=False)
    names = frozenset(name for name, _ in model.named_parameters(remove_duplicate=False))
    originals: dict[int, torch.nn.Parameter] = {}
    kept: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or id(weight) in kept:
                continue
            if id(weight) not in originals:
                empty = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
                originals[id(weight)] = torch.nn.Parameter(empty, requires_grad=False)
            module._parameters[name] = originals[id(weight)]
            kept[id(originals[id(weight)])] = originals[id(weight)]
    return Skeleton(model, names, kept)


def with_adapters(
    model: PreTrainedModel, adapters: Sequence[tuple[Path, float]], combination: str, density: float
) -> PeftModel:
    """The skeleton with one adapter on it: the only one, or several combined by peft's add_weighted_adapter.

    Args:
        adapters: Folders with their weights.
        density: Share of the values kept by ties, dare and magnitude_prune.

    Raises:
        ModelError: If they do not fit the model or one another.
    """
    names = [f"adapter{number}" for number in range(len(adapters))]
    try:
        adapted = PeftModel.from_pretrained(model, str(adapters[0][0]), adapter_name=names[0], low_cpu_mem_usage=True)
        for name, (folder, _) in zip(names[1:], adapters[1:], strict=True):
            adapted.load_adapter(str(folder), adapter_name=name, low_cpu_mem_usage=True)
    except (RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{adapters[0][0]}: does not fit the base ({_short(error)}).") from error
    if len(adapters) == 1 and adapters[0][1] == 1:
        adapted.set_adapter(names[0])
        return adapted
    configs: list[Any] = [adapted.peft_config[name] for name in names]
    for (folder, _), config in zip(adapters, configs, strict=True):
        if config.peft_type != "LORA":
            raise ModelError(f"{folder}: a {config.peft_type} adapter; only LoRA adapters can be combined.")
        if config.use_dora:
            raise ModelError(f"{folder}: DoRA; its magnitudes are lost when adapters are combined. Merge it alone.")
        if config.modules_to_save or config.trainable_token_indices:
            raise ModelError(f"{folder}: holds whole modules or tokens, which cannot be combined. Merge it alone.")
    if combination in EXPLODING:
        raise ModelError(f"--combine {combination} prunes A and B apart and explodes. Use {combination}_svd.")
    options = {} if combination in ("linear", "cat", "svd") else {"density": density}
    try:
        adapted.base_model.add_weighted_adapter(  # type: ignore[operator]
            names, [weight for _, weight in adapters], "combined", combination_type=combination, **options
        )
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"--combine {combination}: peft refuses these adapters ({_short(error)}).") from error
    adapted.set_adapter("combined")
    for name in names:
        adapted.delete_adapter(name)
    return adapted


class Layers:
    """Merged weights of an adapted skeleton, one tensor at a time.

    Attributes:
        unties: Whether input and output embeddings differ afterwards though the base ties them.
        changes: Modules and parameters of the model that the adapters change.
        rows: Embedding rows of the result.
    """

    def __init__(self, adapted: PeftModel, bare: Skeleton) -> None:
        self.adapter = str(adapted.active_adapter)
        model: Any = adapted
        self.model: Any = model.get_base_model()
        self.config: Any = self.model.config
        self.names = bare.names
        wrapped = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, AuxiliaryTrainingWrapper | BaseTunerLayer)
        }
        self.wrapped = {
            name: module
            for name, module in wrapped.items()
            if not any(name.startswith(f"{other}.") for other in wrapped if other != name)
        }
        plain = {name.replace(".base_layer", ""): weight for name, weight in self.model.named_parameters()}
        self.trained = {  # biases that were trained as they are
            name: weight for name, weight in plain.items() if name in self.names and id(weight) not in bare.placeholders
        }
        places = {id(module): name for name, module in self.model.named_modules()}
        self.input = places[id(self.model.get_input_embeddings())]
        head = self.model.get_output_embeddings()
        self.output = places.get(id(head), "") if head is not None else ""
        self.tied = bool(self.config.get_text_config().tie_word_embeddings) and bool(self.output)
        self.unties = self.tied and any(
            isinstance(self.wrapped.get(name), BaseTunerLayer | ModulesToSaveWrapper)
            for name in (self.input, self.output)
        )
        self.changes = set(self.wrapped) | set(self.trained)
        if self.tied and not self.unties:
            self.changes.discard(self.output)
        self.rows = int(self.config.get_text_config().vocab_size)

    def name_of(self, key: str) -> str:
        """The model's own name for a tensor of a checkpoint, which may lack or add the prefix of the headless model."""
        prefix = self.model.base_model_prefix
        for name in (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}."), self.renamed(key)):
            if name in self.names:
                return name
        return key

    def renamed(self, key: str) -> str:
        """The name by which a tensor of a checkpoint has to be written, so that the model's class reads it."""
        for old, new in self.renamed_keys.items():
            key = re.sub(old, new, key)
        return key

    @property
    def renamed_keys(self) -> dict[str, str]:
        """transformers' key_mapping of the base's files."""
        return renamed_keys(self.model.base_model.base_model_prefix, self.model.base_model_prefix)

    def touches(self, name: str) -> bool:
        """Whether the adapters change a tensor."""
        module = name.rpartition(".")[0]
        return name in self.trained or module in self.wrapped

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """Weights that were trained whole, such as a classifier's head, by the model's names."""
        found: dict[str, torch.Tensor] = {}
        for name, module in self.wrapped.items():
            if isinstance(module, ModulesToSaveWrapper):
                whole: Any = module.modules_to_save[self.adapter]
                found |= {f"{name}.{leaf}": weight for leaf, weight in whole.named_parameters()}
        return found

    def merged(self, name: str, tensor: torch.Tensor, read: Read) -> torch.Tensor:
        """A base tensor with the adapters in it, in its own dtype.

        Args:
            read: Gives another tensor of the base by the model's name, or None: a bias may need its weight.

        Raises:
            DivergedError: If the result is not finite.
        """
        if name in self.trained:
            return self.trained[name].detach().to(tensor.dtype)
        module, _, leaf = name.rpartition(".")
        layer: Any = self.wrapped[module]
        if isinstance(layer, ModulesToSaveWrapper):
            whole: torch.Tensor = getattr(layer.modules_to_save[self.adapter], leaf).detach()
            return _finite(name, whole.to(tensor.dtype))
        if isinstance(layer, TrainableTokensWrapper):
            layer = layer.token_adapter
        while isinstance(layer, ParamWrapper) and layer.parameter_name != leaf:
            layer = layer.base_layer
        if isinstance(layer, ParamWrapper):
            return _finite(name, self._merge(layer, {leaf: tensor})[leaf])
        if leaf == "bias" and not any(getattr(layer, "lora_bias", {}).values()):
            return tensor
        given = {leaf: tensor}
        for other in ("weight", "bias"):
            found = read(f"{module}.{other}") if other not in given else None
            if found is not None:
                given[other] = found
        if leaf not in ("weight", "bias") or "weight" not in given:
            return tensor
        return _finite(name, self._merge(layer, given)[leaf])

    def _merge(self, layer: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One tuner layer's own merge on real tensors in place of its placeholders."""
        base = layer.get_base_layer()
        before = {leaf: getattr(base, leaf) for leaf in given}
        for leaf, tensor in given.items():
            setattr(base, leaf, torch.nn.Parameter(tensor, requires_grad=False))
        try:
            layer.merge(safe_merge=False, adapter_names=[self.adapter])
            return {leaf: getattr(base, leaf).data for leaf in given}
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise ModelError(f"the adapter cannot be merged: {_short(error)}") from error
        finally:
            layer.merged_adapters.clear()
            for leaf, weight in before.items():
                setattr(base, leaf, weight)


def _finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        raise DivergedError(f"{name}: the merged weight is not finite. The adapter is broken; train it anew.")
    return tensor


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
