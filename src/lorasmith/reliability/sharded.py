"""A model that is sharded over processes (FSDP2) is saved, resumed and reopened as a whole one is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from lorasmith.engine import FSDP2, this_engine


def sharded(trainer: type[Any]) -> type[Any]:
    """The trainer class whose checkpoints are the same files under every engine: any number of processes goes on.

    transformers (5.23) saves FSDP2's weights as pytorch_model_fsdp.bin, for which it gathers the frozen base on one
    process too, and its optimizer by names; neither can be loaded without FSDP, nor an adapter's file with it. Here
    what is trained is gathered alone, and both files are those of a single process.
    """

    class ShardedTrainer(trainer):  # type: ignore[misc]
        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            if this_engine().kind == FSDP2 and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
                shard_on_cpu(self.accelerator)
                self.is_fsdp_enabled = True

        @property
        def is_sharded(self) -> bool:
            """Whether FSDP2 shards the model."""
            return bool(self.accelerator.is_fsdp2)

        def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
            if not self.is_sharded:
                return super().save_model(output_dir, _internal_call)
            with whole_weights(self.model):
                self._save(output_dir)
            return None

        def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
            if not self.is_sharded:
                return super()._save_optimizer_and_scheduler(output_dir)
            state = self.optimizer.state_dict()
            state["state"] = {at: {key: whole(one) for key, one in each.items()} for at, each in state["state"].items()}
            if self.args.should_save:
                torch.save(state, Path(output_dir) / "optimizer.pt")
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
            return None

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if not self.is_sharded:
                return super()._load_from_checkpoint(resume_from_checkpoint, model)
            return load_trained(self.model, Path(resume_from_checkpoint))

        def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
            if checkpoint is None or not self.is_sharded:
                return super()._load_optimizer_and_scheduler(checkpoint)
            state = torch.load(Path(checkpoint) / "optimizer.pt", map_location="cpu", weights_only=True)
            weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
            for at, each in state["state"].items():
                each |= {key: shared_out(one, weights[at]) for key, one in each.items()}
            self.optimizer.load_state_dict(state)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
            return None

        def _load_best_model(self) -> None:
            if not self.is_sharded:
                return super()._load_best_model()
            return load_trained(self.model, Path(self.state.best_model_checkpoint))

    ShardedTrainer.__name__ = trainer.__name__
    return ShardedTrainer


def shard_on_cpu(accelerator: Any) -> None:
    """Let accelerate shard on CPUs, as its config asks for.

    accelerate (1.15, AcceleratorState) takes an FSDP config into account on accelerators alone, and quietly trains
    under DDP on CPUs, although its FSDP2 code and torch's run there.
    """
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state._shared_state["fsdp_plugin"] = plugin
    accelerator.state._shared_state["distributed_type"] = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def reshard(model: torch.nn.Module) -> None:
    """Give up what is whole of a sharded model: its outermost part stays so after a forward pass.

    Until then the model's parameters are other tensors there than those of the optimizer.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def whole_weights(model: torch.nn.Module, changed: bool = False) -> Iterator[None]:
    """Inside, what is trained stands in the model whole, on every process; all processes enter and leave together.

    So do the heads that trained ones began as.

    For reading and writing weights alone: a forward pass inside would gather them by itself.

    Args:
        changed: Whether what stands there at the end is to be trained on.
    """
    swapped = []
    reshard(model)  # peft's state_dict() would do so on the saving process alone, and the next forward pass would hang
    for place, module in model.named_modules():
        for name, weight in module._parameters.items():
            if isinstance(weight, DTensor) and (weight.requires_grad or "original_module" in place):
                gathered = torch.nn.Parameter(whole(weight.detach()), weight.requires_grad)
                swapped.append((module, name, weight, gathered))
    for module, name, _, gathered in swapped:
        module._parameters[name] = gathered
    try:
        yield
    finally:
        for module, name, weight, gathered in swapped:
            if changed:
                with torch.no_grad():
                    weight.copy_(shared_out(gathered.detach(), weight))
            module._parameters[name] = weight


def load_trained(model: Any, checkpoint: Path) -> None:
    """Put what a checkpoint's adapter has into a sharded model, on every process.

    Not by load_state_dict(), as transformers and peft do: FSDP2's own hook there expects shards.
    """
    saved = load_file(checkpoint / "adapter_model.safetensors")
    with whole_weights(model, changed=True):
        for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items():
            weight.copy_(saved[name])


def whole(found: Any) -> Any:
    """A sharded tensor gathered, in the computer's memory; anything else as it is."""
    if not isinstance(found, DTensor):
        return found
    return found.full_tensor().cpu()


def shared_out(found: Any, like: Any) -> Any:
    """This process's part of a tensor that every process has whole; a number as it is.

    Args:
        like: A weight that is sharded as the result is to be.
    """
    if not isinstance(like, DTensor) or not torch.is_tensor(found) or found.shape != like.shape:
        return found
    there = found.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)
