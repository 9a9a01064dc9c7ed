"""What processes send each other, and how long that takes where arithmetic does not hide it.

Volumes are those of ring collectives (ZeRO, arXiv 1910.02054, section 7; FSDP, arXiv 2304.11277, section 3.3): of V
bytes each process sends and receives V (N - 1) / N to gather them or to reduce and scatter them, twice that to reduce
them everywhere. A LoRA's gradients are small; the frozen base of a sharded model is fetched whole in every pass of
every micro-batch, in the bits it is stored in. Bandwidths are shares of data sheets, assumed until GPUs have been
measured; benchmarks/scaling.py measures gloo on a CPU.
"""

from dataclasses import dataclass

from lorasmith.engine import DDP, FSDP1, FSDP2, ZERO
from lorasmith.memory.conditions import Setting
from lorasmith.memory.shape import Shape
from lorasmith.memory.shares import gathered_itemsize, units_of
from lorasmith.memory.weights import base_bytes

GBIT = 1e9 / 8
SHARE_OF_NETWORK = 0.8  # of a network's data rate that collectives reach, assumed


@dataclass(frozen=True, slots=True)
class Links:
    """How fast bytes travel, in bytes/s and seconds.

    Attributes:
        device: Of a collective between the devices of a machine, each way.
        host: Between a device and its computer's memory.
        network: Of a machine's network; 0 for one machine.
        latency: Of each step of a collective.
    """

    name: str
    device: float
    host: float
    network: float = 0.0
    latency: float = 20e-6

    @property
    def slowest(self) -> float:
        """The narrowest part of a ring through all processes: it enters and leaves each machine once."""
        return min(self.device, self.network) if self.network else self.device


# 32 GB/s each way on the data sheet; consumer cards send to each other by way of the computer's memory, over it twice.
PCIE = Links("PCIe 4 x16", 12e9, 24e9)
NVLINK = Links("NVLink", 210e9, 24e9)  # 70 % of an A100's 300 GB/s each way
NVLINK4 = Links("NVLink 4", 315e9, 48e9)  # 70 % of an H100's 450 GB/s each way; PCIe 5
GLOO = Links("gloo", 1.5e9, 1e10, latency=3e-4)  # of one machine's own network; benchmarks/scaling.py measures it


def links_of(name: str, network: float = 0.0) -> Links:
    """The links of a card by its name in the data sheets.

    Args:
        network: Gbit/s between machines; 0 for one machine.
    """
    found = NVLINK4 if name in ("H100", "H200") else NVLINK if "SXM" in name else PCIE
    return with_network(found, network)


def with_network(links: Links, gbit: float) -> Links:
    """Links with a network of so many Gbit/s between machines."""
    wide = SHARE_OF_NETWORK * gbit * GBIT
    return Links(links.name, links.device, links.host, wide, links.latency)


def fetched_bytes(shape: Shape, s: Setting) -> int:
    """Weights that are fetched for one pass through a model that is shared out; 0 where each process has it whole."""
    if not s.shared.shards_weights:
        return 0
    adapter = s.adapter_weights(shape) + s.whole
    kept = 4 if s.shared.kind not in (FSDP1, FSDP2) else gathered_itemsize(s)
    return base_bytes(shape, s) - units_of(shape, s).apart + kept * adapter


def fetch_seconds(shape: Shape, s: Setting, links: Links) -> float:
    """One fetch of all weights, and of this process's part from the computer's memory first where it lies there."""
    engine, size = s.shared, fetched_bytes(shape, s)
    if not size:
        return 0.0
    n = engine.processes
    layers = shape.layers + (shape.decoder.layers if shape.decoder is not None else 0)
    seconds = size * (n - 1) / n / links.slowest + (layers + 2) * (n - 1) * links.latency
    return seconds + (size / n / links.host if engine.offload else 0.0)


def waited_seconds(s: Setting, fetch: float, computing: float, passes: float, units: int) -> float:
    """Of a micro-batch, what fetching takes longer than the arithmetic that it hides behind, and its first unit.

    Args:
        fetch: Seconds of one fetch of all weights.
        computing: Seconds of the arithmetic of all passes.
        passes: Forward passes, with those of a backward pass and of recomputation.
        units: That weights are fetched in.
    """
    if not fetch:
        return 0.0
    forward = computing / passes
    fetches = [forward] * (1 + s.readings) + ([computing - forward * (1 + s.readings)] if s.shared.reshard else [])
    return sum(max(0.0, fetch - behind) + fetch / units for behind in fetches)


def update_waiting_seconds(shape: Shape, s: Setting, links: Links) -> float:
    """What an update's gradients take: reduced everywhere, or reduced and scattered with the weights gathered anew."""
    engine = s.shared
    n = engine.processes
    if n == 1:
        return 0.0
    trained = s.adapter_weights(shape) + s.whole
    both = engine.kind == DDP or engine.kind == f"{ZERO}-2"
    volume = 4 * trained * (n - 1) / n * (2 if both else 1)
    waiting = volume / links.slowest + 2 * (n - 1) * links.latency
    # An update on the CPU reads and writes weights, gradients and two states, of all processes of a machine together.
    return waiting + (16 * 2 * trained * engine.per_machine / n / 2e10 if engine.offload else 0.0)
