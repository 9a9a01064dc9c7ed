"""What one process holds of a run that an engine shares out over several, in bytes, and what it gathers for a while.

ZeRO (arXiv 1910.02054, section 5): optimizer states, gradients and weights are divided by the processes, stage by
stage. FSDP (arXiv 2304.11277, section 3.2): a unit's weights are whole only while it computes. Which tensors live at
once is read in the libraries' source (torch 2.13, accelerate 1.15, DeepSpeed 0.18) and, for DDP and FSDP2, compared
with measurements by benchmarks/engine_memory.py.
"""

from dataclasses import dataclass, field

from lorasmith.engine import DDP, FSDP1, FSDP2, ZERO, Engine
from lorasmith.memory.conditions import Setting
from lorasmith.memory.shape import Linear, Shape
from lorasmith.memory.weights import GIB, base_bytes, linear_parts, optimizer_bytes

NCCL = GIB // 4  # of a card, for its channels' buffers (4 MiB each, NCCL_BUFFSIZE) and kernels; assumed, not measured
PROCESS = 2 * GIB  # of the computer's memory: Python with torch, CUDA's libraries and the run's own rows; assumed
BUCKET, PREFETCHED, LIVE, PERSISTENT = 500_000_000, 50_000_000, 1_000_000_000, 100_000  # elements, DeepSpeed's defaults


@dataclass(frozen=True, slots=True)
class Units:
    """What FSDP2 gathers together, as accelerate cuts a model (accelerate.utils.fsdp_utils.fsdp2_prepare_model).

    Attributes:
        block: Bytes of the largest block whole, its adapter included.
        blocks: Of all of them.
        embedding: Of the input embedding, which is a unit of its own; 0 where the output layer shares it.
        tail: Of the last norm and the output layer, which stay whole from there to their backward pass; where the
            input embedding is the output layer's, from the first to the last moment of a micro-batch.
        apart: Bytes that no process shares out: 4-bit weights' constants, and 8-bit weights.
        trained: Of one block's gradients.
    """

    block: int
    blocks: int
    embedding: int
    tail: int
    apart: int
    trained: int


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of one process.

    Attributes:
        base: Frozen weights that it keeps.
        adapter: Trained ones.
        optimizer: States.
        gradients: At an update.
        accumulated: Of the micro-batches before the last one of an update.
        always: What is held from the first backward pass on, by name.
        backward: What is held while gradients are made.
        gathered: Weights of others, by moment: `gather`, at the worst instant of fetching them, with all activations
            held; `start`, at its like without any; loss; backward.
        outside: Of a card, besides what torch's allocator sees.
        loading: While the weights are read: on the device.
        host: Of the computer's memory, by name.
        host_loading: Of it, while weights are read.
    """

    base: int
    adapter: int
    optimizer: int
    gradients: int
    accumulated: int
    always: dict[str, int] = field(default_factory=dict)
    backward: int = 0
    gathered: dict[str, int] = field(default_factory=dict)
    outside: int = 0
    loading: int = 0
    host: dict[str, int] = field(default_factory=dict)
    host_loading: int = 0


def share_of(shape: Shape, s: Setting) -> Share:
    """What one process holds under the setting's engine."""
    engine = s.shared
    outside = NCCL if s.device == "cuda" and engine.processes > 1 else 0
    if engine.kind in (FSDP1, FSDP2):
        return _fsdp(shape, s, engine, outside)
    if engine.kind in (f"{ZERO}-2", f"{ZERO}-3"):
        return _zero(shape, s, engine, outside)
    weights = s.adapter_weights(shape) + s.whole
    # DDP copies each gradient into a bucket, which it makes once and keeps (torch.nn.parallel.distributed, with
    # gradient_as_bucket_view false, transformers' way).
    always = {"buckets": 4 * weights} if engine.kind == DDP else {}
    states = int(optimizer_bytes(s.optimizer) * weights)
    base, gradients = base_bytes(shape, s), 4 * weights
    return Share(base, 4 * weights, states, gradients, gradients, always, 0, {}, outside, base, _host(s, {}), 0)


def _fsdp(shape: Shape, s: Setting, engine: Engine, outside: int) -> Share:
    """FSDP2: every parameter cut along its first dimension, as many rows for each process, the last one's filled up.

    A unit is gathered into one buffer, from which its parameters are copied; a forward pass keeps that buffer until
    the next unit is copied, and a backward pass fetches the unit before while it computes one
    (torch.distributed.fsdp._fully_shard._fsdp_param_group, wait_for_unshard and _backward_prefetch). gloo takes a
    second buffer while it gathers. Gradients of all micro-batches of an update but the last are whole on every process,
    since accelerate's no_sync lets FSDP2 reduce once an update, in the arithmetic's dtype.
    """
    n, units = engine.processes, units_of(shape, s)
    base = -(-(base_bytes(shape, s) - units.apart) // n)
    adapter = 4 * sharded_adapter(shape, s, n)
    states = int(optimizer_bytes(s.optimizer) * adapter / 4)
    weights = s.adapter_weights(shape) + s.whole
    whole_gradients = gathered_itemsize(s) * weights
    block, tail, first = units.block, units.tail, units.embedding
    twice = 2 if s.device == "cpu" else 1  # gloo's own buffer
    always_whole = tail if not first else 0  # a tied embedding, from start to end
    if engine.reshard:
        gather = max(3 * block + always_whole, block + 2 * tail, tail + twice * block)
        start = max(2 * (first or tail), (first or tail) + 2 * block)
        loss, backward = 2 * tail if first else tail + block, always_whole + 2 * block
        if twice > 1:
            gather = max(gather, always_whole + 3 * block)
    else:
        every = units.blocks + first + tail
        gather, start, loss, backward = every + block + (tail if first else 0), 0, every + tail, every
    gathered = {"gather": gather, "start": start, "loss": loss, "backward": backward}
    largest = max(block, first, tail)
    shards = base + units.apart
    if not engine.offload:
        loading = shards + adapter + largest
        return Share(
            shards, adapter, states, adapter, whole_gradients, {}, 2 * units.trained, gathered, outside, loading,
            _host(s, {}), _read(shape, s, engine),
        )  # fmt: skip
    # Shards, their gradients and the optimizer's states lie in pinned memory; the update is the CPU's.
    host = {"weights": base, "adapter": adapter, "gradients": adapter, "optimizer": states}
    return Share(
        units.apart, 0, 0, 0, whole_gradients, {}, 2 * units.trained, gathered, outside, units.apart + largest,
        _host(s, host), _read(shape, s, engine),
    )  # fmt: skip


def _zero(shape: Shape, s: Setting, engine: Engine, outside: int) -> Share:
    """ZeRO: float32 weights, gradients and states of what is trained by N, beside its copy in the arithmetic's dtype.

    Stage 2 keeps the model whole and fills a bucket of fixed size with gradients while backward runs
    (deepspeed/runtime/zero/stage_1_and_2.py, ipg_buffer, reduce_bucket_size). Stage 3 keeps that bucket for good and
    divides all weights but those of fewer elements than param_persistence_threshold; as many as max_live_parameters are
    whole at once, and those fetched ahead (partitioned_param_coordinator.py). Sizes are DeepSpeed's defaults
    (deepspeed/runtime/zero/config.py), unless the config says otherwise.
    """
    n, e = engine.processes, s.itemsize
    weights = s.adapter_weights(shape) + s.whole
    states = int((4 + optimizer_bytes(s.optimizer)) * weights / n)  # float32 weights are among them
    gradients, bucket = 4 * weights // n, e * BUCKET
    host = {"optimizer": states, "gradients": gradients} if engine.offload else {}
    states, kept = (0, 0) if engine.offload else (states, gradients)
    base = base_bytes(shape, s)
    if engine.kind == f"{ZERO}-2":
        return Share(
            base, e * weights, states, kept, kept, {}, bucket, {}, outside, base, _host(s, host),
            _read(shape, s, engine),
        )  # fmt: skip
    small = min(base, e * shape.layers * shape.block_other)  # norms and biases stay whole
    live = min(base, e * (LIVE + PREFETCHED))
    shards = -(-(base - small) // n)
    if engine.offload:
        host["weights"] = shards
    gathered = {"gather": live, "start": 0, "loss": live, "backward": live}
    device = small + (0 if engine.offload else shards)
    # zero3_init_flag: from_pretrained cuts each weight as soon as it is read.
    largest = max(e * shape.vocab * shape.hidden, max((one.weights for one in shape.linears), default=0) * e)
    return Share(
        device, e * weights, states, kept, kept, {"bucket": bucket}, 0, gathered, outside, device + largest,
        _host(s, host), _read(shape, s, engine),
    )  # fmt: skip


def units_of(shape: Shape, s: Setting) -> Units:
    """The bytes of the units that FSDP2 gathers."""
    n, e = s.shared.processes, s.itemsize
    block = blocks = apart = 0
    for stack in (shape, shape.decoder):
        if stack is None:
            continue
        cut, rest = _cut(stack.linears, s, stack.never_quantized)
        one = cut + e * stack.block_other
        block, blocks, apart = max(block, one), blocks + stack.layers * one, apart + stack.layers * rest
    cut, rest = _cut(shape.outside, s, shape.never_quantized)
    trained = n * _sharded(s.targets, s.rank, n)
    adapted = gathered_itemsize(s) * trained
    first = e * shape.vocab * (shape.embedding or shape.hidden)
    headless = s.loss in ("score", "classes")
    tail = e * shape.other + cut + (0 if headless else first if shape.tied else e * shape.vocab * shape.hidden)
    tied = shape.tied and not headless
    blocks += s.adapted_layers * adapted
    return Units(block + adapted, blocks, 0 if tied else first, tail, apart + rest, adapted)


def gathered_itemsize(s: Setting) -> int:
    """Bytes of a gathered entry of the adapter, and of its gradient there: mixed precision casts it before.

    FullyShardedDataParallelPlugin.set_mixed_precision of accelerate; without autocast, as speed.fused_lora trains in 16
    bit, there is no mixed precision.
    """
    return 4 if s.fused else s.itemsize


def sharded_adapter(shape: Shape, s: Setting, processes: int) -> int:
    """Entries of the adapter on one process: rows of each matrix by the processes, rounded up."""
    known = s.adapted_layers * _sharded(s.targets, s.rank, processes)
    whole = s.adapted_layers * _sharded(s.targets, s.rank, 1)
    rest = s.adapter_weights(shape) + s.whole - whole
    return known + -(-rest // processes)


def _sharded(linears: tuple[Linear, ...], rank: int, n: int) -> int:
    return sum(-(-rank // n) * one.inputs + -(-one.outputs // n) * rank for one in linears)


def _cut(linears: tuple[Linear, ...], s: Setting, never_quantized: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of some linear layers that are shared out, and that are whole on every process."""
    parts = [linear_parts(one, s, never_quantized) for one in linears]
    stored, constants = int(sum(one for one, _ in parts)), int(sum(one for _, one in parts))
    # accelerate leaves out what is not floating point; 8-bit weights lose their scale when torch cuts them.
    return (0, stored + constants) if s.quantization == "int8" else (stored, constants)


def _host(s: Setting, parts: dict[str, int]) -> dict[str, int]:
    """The computer's memory that one process takes, where its device has its own."""
    return {} if s.device == "cpu" else {"process": PROCESS} | parts


def _read(shape: Shape, s: Setting, engine: Engine) -> int:
    """The computer's memory, for each process, while a model that is to be cut is read there whole.

    Unquantized weights are read by the first process of a machine alone where fsdp_cpu_ram_efficient_loading is on;
    accelerate turns that off for 4-bit ones, and ZeRO-3 cuts weights one by one.
    """
    if s.device == "cpu" or engine.kind in (f"{ZERO}-2", f"{ZERO}-3"):
        return 0
    once = bool(engine.setting("fsdp_cpu_ram_efficient_loading", True)) and s.quantization == "none"
    return base_bytes(shape, s) // (engine.per_machine if once else 1)
