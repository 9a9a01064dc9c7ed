"""LoRA by singular values: an adapter of lower rank, and an adapter out of a model that was trained whole."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lorasmith.console import track
from lorasmith.errors import ModelError
from lorasmith.export.adapter_file import PREFIX, AdapterFile, Tensor, canonical, leaf, read_folder_tensors, shown
from lorasmith.export.adapter_folder import full_lora_config
from lorasmith.export.clinic import require_sound

EXACT = 512  # the smaller side of a matrix up to which its singular values are computed exactly
OVERSAMPLED, ROUNDS = 16, 4  # columns and power iterations of the randomised kind (arXiv 0909.4061)
TOLERANCE = 1e-3  # relative difference of a tensor that no LoRA can carry, up to which it is left out
FLOATS = ("F64", "F32", "F16", "BF16")
# Variants of LoRA whose update is more than B A, or is laid out otherwise.
_BEYOND = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "target_parameters": "LoRA on parameters",
}
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")


@dataclass(slots=True)
class Made:
    """An adapter in memory.

    Attributes:
        energy: Kept and whole squared norm of the updates, by kind of module.
        left_out: Lines about tensors that it does not carry.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    energy: dict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    left_out: list[str] = field(default_factory=list)

    def kept(self) -> dict[str, float]:
        """The share of the squared norm that is kept, by kind of module and, under "", of all."""
        whole = [sum(pair[i] for pair in self.energy.values()) for i in (0, 1)]
        return {kind: one / all_ if all_ else 1.0 for kind, (one, all_) in [*self.energy.items(), ("", whole)]}


@torch.no_grad()
def shrink(adapter: AdapterFile, rank: int) -> Made:
    """An adapter whose updates are the best ones of a rank (Eckart-Young), its scale folded into B.

    B = Q R and A = L P give B A = Q (R L) P, so that the singular values are those of the small matrix R L.

    Raises:
        ModelError: If it is no LoRA, or its rank is no larger.
    """
    beyond = next((name for key, name in _BEYOND.items() if adapter.config.get(key)), None)
    if adapter.peft_type != "LORA" or beyond:
        what = beyond or adapter.peft_type
        raise ModelError(f"{adapter.folder}: is {what}, whose update is not B A alone. Only LoRA and rsLoRA shrink.")
    require_sound(adapter)
    parts = adapter.parts()
    ranks = {module: adapter.rank(module) for module, names in parts.items() if _pair(names)}
    if max(ranks.values(), default=0) <= rank:
        raise ModelError(f"{adapter.folder}: its rank is {max(ranks.values(), default=0)}; --rank must be below it.")
    made = Made({})
    lower: dict[str, int] = {}
    with safe_open(next(iter(adapter.tensors.values())).path, framework="pt") as file:
        for module, names in parts.items():
            pair = _pair(names)
            for part, name in names.items():
                if part not in (pair or ()):
                    tensor = file.get_tensor(name)
                    scaled = part == "lora_B.bias"
                    made.tensors[name] = tensor * adapter.scale(module, ranks[module]) if scaled else tensor
            if pair is None:
                continue
            a, b = (file.get_tensor(names[part]) for part in pair)
            factors = (b.double().flatten(1) * adapter.scale(module, a.shape[0]), a.double().flatten(1))
            to = min(rank, ranks[module])
            up, down, kept, whole = _cut(*factors, to)
            made.tensors[names[pair[0]]] = down.reshape(to, *a.shape[1:]).to(a.dtype)
            made.tensors[names[pair[1]]] = up.reshape(b.shape[0], to, *b.shape[2:]).to(b.dtype)
            _add(made, module, kept, whole)
            if to < rank:
                lower[module] = to
    made.config = adapter.config | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": lower,
        "alpha_pattern": dict(lower),
        # How it began no longer matters; peft would begin so again, and some ways look at the base or at rows.
        "init_lora_weights": True,
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
        "loftq_config": {},
    }
    return made


def _pair(names: dict[str, str]) -> tuple[str, str] | None:
    pairs = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
    return next((pair for pair in pairs if pair[0] in names and pair[1] in names), None)


def _cut(b: torch.Tensor, a: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """The best factors of `rank` for b @ a, each with half of the singular values, and the squared norms."""
    left, upper = torch.linalg.qr(b)
    right, lower = torch.linalg.qr(a.T)
    u, s, v = torch.linalg.svd(upper @ lower.T)
    u, v, kept = _halves(left @ u[:, : s.numel()], s, right @ v[: s.numel()].T, rank)
    return u, v, kept, float((s * s).sum())


def _halves(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """B, of shape (out, rank), and A, (rank, in), from singular vectors in columns; zeros fill what they lack."""
    have = min(rank, s.numel())
    root = s[:have].sqrt()
    b, a = u.new_zeros(u.shape[0], rank), v.new_zeros(rank, v.shape[0])
    b[:, :have] = u[:, :have] * root
    a[:have] = (v[:, :have] * root).T
    return b, a, float((s[:have].double() ** 2).sum())


def _add(made: Made, module: str, kept: float, whole: float) -> None:
    made.energy[leaf(module)][0] += kept
    made.energy[leaf(module)][1] += whole


@torch.no_grad()
def extract(full: Path, base: Path, rank: int, rest: str) -> Made:
    """A LoRA for the difference between a model and its base, of which one pair of tensors is in memory at a time.

    Args:
        rest: What becomes of what differs and is no linear layer's weight: "refuse", "ignore", or "save" (whole).

    Raises:
        ModelError: If the two are no pair, are quantized, or differ in what a LoRA cannot carry.
    """
    modules = module_kinds(base)
    pairs = list(_paired(full, base))
    made = Made({})
    changed: dict[str, list[tuple[str, Tensor, float]]] = defaultdict(list)
    turned = False
    embeddings = [tensor for name, tensor, _ in pairs if name.endswith(_EMBEDDINGS)]
    for name, ours, theirs in track(pairs, "tensors compared"):
        difference, size, share = _difference(name, ours, theirs)
        if not size:
            continue
        owner, _, parameter = name.rpartition(".")
        module, kind = modules.get(canonical(owner), ("", ""))
        if not size < float("inf"):
            raise ModelError(f"{full}: {name} holds numbers that are not finite.")
        # A LoRA on an output layer that is tied would part it from its embedding.
        if kind not in ("Linear", "Conv1D") or parameter != "weight" or ours in embeddings:
            changed[module].append((name, ours, share))
            continue
        turned |= kind == "Conv1D"
        delta = difference.T if kind == "Conv1D" else difference
        u, s, v = _singular(delta, min(rank, *delta.shape))
        to = min(rank, *delta.shape)
        b, a, kept = _halves(u, s, v, to)
        made.tensors |= {f"{PREFIX}{module}.lora_A.weight": a, f"{PREFIX}{module}.lora_B.weight": b}
        _add(made, module, kept, float((difference.double() ** 2).sum()))
    saved = _rest(made, {name: ours for name, ours, _ in pairs}, full, changed, rest)
    names = sorted({name.removeprefix(PREFIX).partition(".lora_")[0] for name in made.tensors if ".lora_A." in name})
    if not names:
        raise ModelError(f"{full}: no linear layer differs from {base}; there is nothing for a LoRA to hold.")
    ranks = {name: made.tensors[f"{PREFIX}{name}.lora_A.weight"].shape[0] for name in names}
    lower = {name: to for name, to in ranks.items() if to < rank}
    made.config = full_lora_config(None, rank, _targets(names, modules), fan_in_fan_out=turned, modules_to_save=saved)
    made.config |= {"rank_pattern": lower, "alpha_pattern": dict(lower)}
    return made


def _difference(name: str, after: Tensor, before: Tensor) -> tuple[torch.Tensor, float, float]:
    """after - before in float32, its norm, and that relative to the norm of `before`."""
    was = read_tensor(name, before)
    difference = read_tensor(name, after).sub_(was)
    size = float(difference.norm())
    return difference, size, size / max(float(was.norm()), 1e-30)


def _rest(
    made: Made, ours: dict[str, Tensor], full: Path, changed: dict[str, list[tuple[str, Tensor, float]]], rest: str
) -> list[str] | None:
    """Put whole modules into the adapter, or say what stays outside; the modules that are saved whole."""
    every = [one for ones in changed.values() for one in ones]
    large = [name for name, _, size in every if size > TOLERANCE]
    if rest == "refuse" and large:
        raise ModelError(
            f"{full}: {len(large)} tensors differ that no LoRA can hold, such as {large[0]}. "
            "Save them whole with --save-rest, or leave them out with --ignore-rest."
        )
    if rest != "save":
        made.left_out += [f"left out: {name}, relative difference {size:.1e}" for name, _, size in every]
        return None
    for module, ones in changed.items():
        if not module:
            raise ModelError(f"{full}: {ones[0][0]} belongs to no module that peft could save. Use --ignore-rest.")
        for part in ("lora_A", "lora_B"):  # a bias that changed takes its whole layer along
            made.tensors.pop(f"{PREFIX}{module}.{part}.weight", None)
        owner = ones[0][0].rpartition(".")[0]
        for name, tensor in ours.items():
            if name.rpartition(".")[0] == owner:
                made.tensors[f"{PREFIX}{module}.{name.rpartition('.')[2]}"] = read_tensor(name, tensor)
    return sorted(changed) or None


def _targets(names: list[str], modules: dict[str, tuple[str, str]]) -> list[str]:
    """The shortest names for the modules that carry the adapter: of kinds where all do, else in full."""
    every: dict[str, set[str]] = defaultdict(set)
    for module, _ in modules.values():
        every[leaf(module)].add(module)
    return sorted({leaf(name) if every[leaf(name)] <= set(names) else name for name in names})


def _singular(delta: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Leading singular vectors, in columns, and values: exact for a small matrix, else randomised with a fixed seed."""
    if min(delta.shape) <= max(EXACT, rank + OVERSAMPLED):
        u, s, v = torch.linalg.svd(delta, full_matrices=False)
        return u, s, v.T
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(delta, q=rank + OVERSAMPLED, niter=ROUNDS)


def _paired(full: Path, base: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each tensor of the base with the model's own, by the base's name."""
    ours, theirs = _by_place(full), _by_place(base)
    for key in sorted(ours.keys() ^ theirs.keys()):
        where, other = (full, base) if key in theirs else (base, full)
        raise ModelError(f"{where} has no {key}, which {other} has; they are no model and its base.")
    for key, (name, before) in theirs.items():
        after = ours[key][1]
        if after.shape != before.shape:
            sizes = f"{list(after.shape)}, in {base} {list(before.shape)}"
            raise ModelError(f"{full}: {name} is {sizes}; model and base must have the same shapes.")
        for tensor in (after, before):
            if tensor.dtype not in FLOATS:
                raise ModelError(f"{tensor.path}: {name} is {tensor.dtype}; give weights that are not quantized.")
        yield name, after, before


def _by_place(folder: Path) -> dict[str, tuple[str, Tensor]]:
    """Names and tensors of a model by the path that does not depend on versions, a tied output layer among them."""
    tensors = read_folder_tensors(folder)
    found = {canonical(name): (name, tensor) for name, tensor in tensors.items()}
    if len(found) < len(tensors):
        found = {name: (name, tensor) for name, tensor in tensors.items()}
    if "lm_head.weight" not in found:
        tied = next((tensor for name, tensor in tensors.items() if name.endswith(_EMBEDDINGS)), None)
        found |= {"lm_head.weight": ("lm_head.weight", tied)} if tied is not None else {}
    return found


def read_tensor(name: str, tensor: Tensor) -> torch.Tensor:
    """A tensor in float32, whatever its name in the file is."""
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if tensor.dtype not in kinds:
        raise ModelError(f"{tensor.path}: {name} is {tensor.dtype}; expected {', '.join(kinds)}.")
    if not tensor.bytes:
        return torch.zeros(tensor.shape)
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        data = bytearray(file.read(tensor.bytes))
    return torch.frombuffer(data, dtype=kinds[tensor.dtype]).reshape(tensor.shape).float()


def module_kinds(base: Path) -> dict[str, tuple[str, str]]:
    """The base's modules that have weights, as transformers builds it, without its weights.

    Returns:
        (path, class name) by the path that does not depend on versions.

    Raises:
        ModelError: If transformers cannot build it.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(base)
        kind = getattr(transformers, (config.architectures or [""])[0], None)
        with torch.device("meta"):
            model = kind._from_config(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # transformers raises a dozen kinds here
        raise ModelError(f"{base}: transformers cannot build this model ({shown(error)}).") from error
    found: dict[str, tuple[str, str]] = {}
    for name, module in model.named_modules():
        if name and module._parameters:
            place = canonical(name)
            found[place] = ("", "") if place in found else (name, type(module).__name__)
    return found
