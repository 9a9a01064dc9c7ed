"""How the processes of a run share its model, as an accelerate config asks for it; read without accelerate.

`accelerate launch` hands its config on as environment variables (accelerate.utils.launch, 1.15), so that each process
knows its engine before torch is imported; plan.py reads the config itself.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorasmith.errors import RecipeError

SINGLE, DDP, FSDP1, FSDP2, ZERO = "one process", "DDP", "FSDP1", "FSDP2", "ZeRO"
ZERO2, ZERO3 = f"{ZERO}-2", f"{ZERO}-3"
OTHERS = {"MEGATRON_LM": "Megatron-LM", "TP": "tensor parallel", "XLA": "XLA", "MULTI_XPU": "MULTI_XPU"}


@dataclass(frozen=True, slots=True)
class Engine:
    """How processes share a model.

    Attributes:
        kind: SINGLE, DDP, FSDP1, FSDP2, ZERO with its stage behind it, such as "ZeRO-3", or a name of another engine.
        processes: In the whole job, one a device.
        machines: That they run on.
        cpu: Whether they compute on the CPU.
        offload: Whether sharded weights and the optimizer's states are kept in the computer's memory.
        reshard: FSDP2 and ZeRO-3: whether a block's whole weights are freed between its forward and its backward pass.
        context: Devices that share each row (context parallel).
        settings: What the validator looks at, by the config's own names.
    """

    kind: str = SINGLE
    processes: int = 1
    machines: int = 1
    cpu: bool = False
    offload: bool = False
    reshard: bool = True
    context: int = 1
    settings: Mapping[str, Any] | None = None

    @property
    def shards_weights(self) -> bool:
        """Whether no process has the whole model."""
        return self.kind in (FSDP1, FSDP2, ZERO3)

    @property
    def shards_states(self) -> bool:
        """Whether gradients and the optimizer's states are shared out."""
        return self.shards_weights or self.kind == ZERO2

    @property
    def replicas(self) -> int:
        """Processes with rows of their own."""
        return max(1, self.processes // self.context)

    @property
    def label(self) -> str:
        """Its name for people, such as FSDP2 with offload over 2."""
        over = "" if self.processes == 1 else f" over {self.processes}"
        across = f" on {self.machines} machines" if self.machines > 1 else ""
        rows = f", {self.context} to a row" if self.context > 1 else ""
        return f"{self.kind}{' with offload' if self.offload else ''}{over}{across}{rows}"

    @property
    def per_machine(self) -> int:
        """Processes on one machine."""
        return -(-self.processes // max(1, self.machines))

    def setting(self, name: str, default: Any = None) -> Any:
        """A key of the config."""
        return (self.settings or {}).get(name, default)


def this_engine(environment: Mapping[str, str] = os.environ) -> Engine:
    """The engine of this process, as its launcher set it."""
    get = environment.get
    processes, local = int(get("WORLD_SIZE", "1")), int(get("LOCAL_WORLD_SIZE", "1"))
    cpu, settings = _true(get("ACCELERATE_USE_CPU")), dict[str, Any]()
    kind, offload, reshard = DDP if processes > 1 else SINGLE, False, True
    if _true(get("ACCELERATE_USE_FSDP")):
        kind = FSDP2 if get("FSDP_VERSION", "1") == "2" else FSDP1
        offload, reshard = _true(get("FSDP_OFFLOAD_PARAMS")), _true(get("FSDP_RESHARD_AFTER_FORWARD", "true"))
        settings = {
            "fsdp_auto_wrap_policy": get("FSDP_AUTO_WRAP_POLICY"),
            "fsdp_transformer_layer_cls_to_wrap": get("FSDP_TRANSFORMER_CLS_TO_WRAP"),
            "fsdp_state_dict_type": get("FSDP_STATE_DICT_TYPE"),
            "fsdp_activation_checkpointing": _true(get("FSDP_ACTIVATION_CHECKPOINTING")),
            "fsdp_cpu_ram_efficient_loading": _true(get("FSDP_CPU_RAM_EFFICIENT_LOADING")),
        }
    elif _true(get("ACCELERATE_USE_DEEPSPEED")):
        kind = f"{ZERO}-{get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
        devices = (
            get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
            get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
        )
        offload = any(device != "none" for device in devices)
        settings = {
            "deepspeed_config_file": get("ACCELERATE_DEEPSPEED_CONFIG_FILE"),
            "gradient_clipping": get("ACCELERATE_GRADIENT_CLIPPING"),
            "zero3_save_16bit_model": _true(get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL")),
        }
    elif _true(get("ACCELERATE_USE_MEGATRON_LM")):
        kind = OTHERS["MEGATRON_LM"]
    settings["gradient_accumulation_steps"] = get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    settings["mixed_precision"] = get("ACCELERATE_MIXED_PRECISION", "no")
    settings["processes of this machine"] = local
    context = 1
    if _true(get("ACCELERATE_USE_PARALLELISM_CONFIG")):
        sizes = {name: int(get(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", "1")) for name in ("cp", "tp", "sp")}
        context = sizes.pop("cp")
        settings |= {f"parallelism_config_{name}_size": size for name, size in sizes.items()}
        settings["parallelism_config_dp_shard_size"] = int(get("PARALLELISM_CONFIG_DP_SHARD_SIZE", "1"))
        settings["parallelism_config_cp_backend"] = get("PARALLELISM_CONFIG_CP_BACKEND")
    return Engine(kind, processes, max(1, -(-processes // max(1, local))), cpu, offload, reshard, context, settings)


def read_engine(path: Path, processes: int | None = None) -> Engine:
    """The engine that an accelerate config asks for.

    Args:
        processes: In place of the config's own number.

    Raises:
        RecipeError: If it is no accelerate config.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: not found. accelerate_configs/ has one file a kind of machine.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise RecipeError(f"{path}: no accelerate config: `distributed_type` is missing.")
    kind = str(config["distributed_type"])
    count = int(processes or config.get("num_processes") or 1)
    part: dict[str, Any] = {}
    name, offload = DDP if count > 1 else SINGLE, False
    if kind == "FSDP":
        part = config.get("fsdp_config") or {}
        name = FSDP2 if int(part.get("fsdp_version", 1)) == 2 else FSDP1
        offload = bool(part.get("fsdp_offload_params"))
    elif kind == "DEEPSPEED":
        part = config.get("deepspeed_config") or {}
        name = f"{ZERO}-{part.get('zero_stage', 2)}"
        offload = any(part.get(f"offload_{what}_device", "none") != "none" for what in ("optimizer", "param"))
    elif kind not in ("NO", "MULTI_GPU", "MULTI_CPU"):
        name = OTHERS.get(kind, kind)
    parallel = config.get("parallelism_config") or {}
    settings = dict(part) | parallel | {"mixed_precision": config.get("mixed_precision", "no")}
    return Engine(
        name,
        count,
        int(config.get("num_machines") or 1),
        bool(config.get("use_cpu")),
        offload,
        bool(part.get("fsdp_reshard_after_forward", True)),
        int(parallel.get("parallelism_config_cp_size", 1)),
        settings,
    )


def _true(text: str | None) -> bool:
    return str(text).lower() in ("1", "true", "yes")
