"""What an adapter holds, and how two of them differ. Numbers are read without torch."""

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lorasmith.errors import LorasmithError, ModelError
from lorasmith.export.adapter_file import (
    CONFIG,
    LORA,
    WEIGHTS,
    AdapterFile,
    Tensor,
    layer_of,
    leaf,
    read_record,
    record_at,
    split_name,
    value_at,
)

if TYPE_CHECKING:
    import numpy as np

FRONT_MATTER = 1 << 16  # bytes of a card that are looked into
_STATES = {0: "done", None: "running or killed", 75: "stopped, can go on"}
_READABLE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def describe(adapter: AdapterFile) -> dict[str, Any]:
    """What an adapter trains, how big it is, on which base, and where it comes from, as one record."""
    config, run = adapter.config, adapter.run
    parts = adapter.parts()
    ranks = {
        module: size
        for module, names in parts.items()
        if "lora_A" in names
        for size in adapter.tensors[names["lora_A"]].shape[:1]
    }
    bill: dict[str, dict[str, int]] = defaultdict(lambda: {"tensors": 0, "parameters": 0, "bytes": 0})
    for name, tensor in adapter.tensors.items():
        module, part = split_name(name, adapter.peft_type)
        row = bill[f"{leaf(module)} {part}".strip()]
        row["tensors"] += 1
        row["parameters"] += tensor.parameters
        row["bytes"] += tensor.bytes
    modules: dict[str, int] = defaultdict(int)
    for module in parts:
        modules[leaf(module) or "the prompt"] += 1
    return {
        "folder": str(adapter.folder),
        "method": adapter.method,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "modules": dict(sorted(modules.items())),
        "layers": sorted({layer for module in parts if (layer := layer_of(module)) is not None}),
        "ranks": ranks if len(set(ranks.values())) > 1 else {},
        "dtypes": sorted({tensor.dtype for tensor in adapter.tensors.values()}),
        "bill": dict(sorted(bill.items())),
        "parameters": sum(tensor.parameters for tensor in adapter.tensors.values()),
        "bytes": sum(tensor.bytes for tensor in adapter.tensors.values()),
        "base": config.get("base_model_name_or_path"),
        "revision": config.get("revision") or value_at(run, "base", "revision"),
        "base_fingerprint": value_at(run, "base", "fingerprint"),
        "licence": licence(adapter.folder),
        "trained": {
            "method": run.get("method"),
            "date": run.get("finished") or run.get("started"),
            "rows": value_at(run, "data", "train_account", "trained"),
            "data": value_at(run, "data", "train"),
            "versions": run.get("versions"),
            "loss_before": value_at(run, "metrics", "before", "eval_loss"),
            "loss_after": value_at(run, "metrics", "after", "eval_loss"),
            "evaluations": run.get("evaluations") or [],
            "made_from": run.get("made_from"),
        }
        if run
        else None,
    }


def licence(folder: Path) -> str | None:
    """The licence that the front matter of an adapter's card states."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(FRONT_MATTER)
    if not text.startswith("---\n"):
        return None
    try:
        found = yaml.safe_load(text[4:].partition("\n---")[0])
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    stated = value_at(found, "license")
    return stated if isinstance(stated, str) else None


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """A record of each run or adapter in a folder, by name; what is broken in one has the value None."""
    found = []
    for path in sorted(folder.iterdir()):
        names = (CONFIG, "run.json", "status.json")
        if not path.is_dir() or not any((path / name).is_file() for name in names):
            continue
        config, run, status = (_record_or_empty(path / name) for name in names)
        weights = path / WEIGHTS
        code = status.get("exit_code")
        found.append(
            {
                "name": path.name,
                "base": config.get("base_model_name_or_path") or value_at(run, "base", "name"),
                "method": value_at(run, "recipe", "adapter", "method") or config.get("peft_type"),
                "rank": config.get("r"),
                "bytes": weights.stat().st_size if weights.is_file() else None,
                "date": run.get("finished") or run.get("started"),
                "loss_before": value_at(run, "metrics", "before", "eval_loss"),
                "loss_after": value_at(run, "metrics", "after", "eval_loss"),
                "best_score": _best_score(run.get("evaluations")),
                "status": "not recorded" if not status else _STATES.get(code, f"failed ({code})"),
            }
        )
    return found


def _record_or_empty(path: Path) -> dict[str, Any]:
    try:
        return read_record(path)
    except (LorasmithError, OSError):
        return {}


NO_GAINS = ("perplexity", "general_loss")  # scores whose rise is no gain; a loss stands in where there is no other


def _best_score(evaluations: Any) -> tuple[str, float, float] | None:
    """The score that gained most, with its base's and the adapter's value; a loss only where there is no other."""
    scores = [
        (name, score["base"], score["adapter"])
        for one in (evaluations if isinstance(evaluations, list) else [])
        for name, score in record_at(one, "scores").items()
        if name not in NO_GAINS and not name.startswith("bias_")
        if isinstance(value_at(score, "base"), int | float) and isinstance(value_at(score, "adapter"), int | float)
    ]
    return max(scores, key=lambda one: (one[0] != "loss", one[2] - one[1]), default=None)


def compare(first: AdapterFile, second: AdapterFile) -> dict[str, Any]:
    """How two adapters differ: configuration, recipe, tensors, and what each adds to its base's weights.

    Returns:
        "config" and "recipe": {key: [first, second]}; "only_first" and "only_second": tensor names; "kinds": for each
        kind of module, the relative difference of its updates over all layers, and the layer where it is largest;
        "modules": the same for each module. A relative difference is None where the first one's update is zero.
    """
    squares: dict[str, tuple[float, float]] = {}
    ours, theirs = first.parts(), second.parts()
    for module in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(module, {}), theirs.get(module, {})
        pairs = [_factors(one, module, names) for one, names in ((first, a), (second, b))]
        if any(pair is not None for pair in pairs):
            squares[module] = _distance(pairs[0], pairs[1])
        for part in sorted(_whole_parts(first, a) & _whole_parts(second, b)):
            squares[f"{module} {part}"] = _tensor_distance(first.tensors[a[part]], second.tensors[b[part]])
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in squares:
        module, _, part = name.partition(" ")
        kinds[f"{leaf(module)} {part}".strip()].append(name)
    return {
        "config": _differences(_ordered(first.config), _ordered(second.config)),
        "recipe": _differences(_flat(value_at(first.run, "recipe")), _flat(value_at(second.run, "recipe"))),
        "only_first": sorted(first.tensors.keys() - second.tensors.keys()),
        "only_second": sorted(second.tensors.keys() - first.tensors.keys()),
        "kinds": {kind: _kind_row(names, squares) for kind, names in sorted(kinds.items())},
        "modules": {name: relative(*pair) for name, pair in squares.items()},
    }


def relative(difference: float, size: float) -> float | None:
    """||a - b|| / ||a|| from the two squares, or None if a is zero."""
    return (difference / size) ** 0.5 if size else None


def read_numbers(tensor: Tensor) -> "np.ndarray[Any, Any]":
    """A tensor as float64, of its own shape.

    Raises:
        ModelError: If its type is none that adapters are saved in.
    """
    import numpy as np

    if tensor.dtype not in _READABLE:
        raise ModelError(f"{tensor.path}: holds {tensor.dtype} numbers; expected {', '.join(_READABLE)}.")
    with tensor.path.open("rb") as file:
        file.seek(tensor.start)
        data = np.frombuffer(file.read(tensor.bytes), dtype=_READABLE[tensor.dtype])
    if tensor.dtype == "BF16":  # the upper half of a float32
        data = (data.astype("<u4") << 16).view("<f4")
    return data.astype(np.float64).reshape(tensor.shape)


def _kind_row(names: list[str], squares: dict[str, tuple[float, float]]) -> dict[str, Any]:
    worst = max(names, key=lambda name: relative(*squares[name]) or 0.0)
    total = (sum(squares[name][0] for name in names), sum(squares[name][1] for name in names))
    layer = layer_of(worst.partition(" ")[0])
    return {"relative": relative(*total), "largest": relative(*squares[worst]), "layer": layer, "modules": len(names)}


def _whole_parts(adapter: AdapterFile, names: dict[str, str]) -> set[str]:
    """The parts of a module that are no factors of an update."""
    factors = {part for part in names if adapter.peft_type in LORA and _is_factor(part)}
    return names.keys() - factors


def _is_factor(part: str) -> bool:
    return part in ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B")


def _factors(adapter: AdapterFile, module: str, names: dict[str, str]) -> Any:
    """B, scaled, and A of a module, as matrices of shapes (out, r) and (r, in), or None if it has none."""
    down, up = (names.get(f"lora_{x}") or names.get(f"lora_embedding_{x}") for x in "AB")
    if adapter.peft_type not in LORA or down is None or up is None:
        return None
    a, b = read_numbers(adapter.tensors[down]), read_numbers(adapter.tensors[up])
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    if not 0 < a.shape[0] == b.shape[1]:
        raise ModelError(f"{adapter.folder}: {down} and {up} do not fit each other. See: adapter.py check.")
    if "lora_E" in names:
        a = a * read_numbers(adapter.tensors[names["lora_E"]])
    return b * adapter.scale(module, a.shape[0]), a


def _distance(first: Any, second: Any) -> tuple[float, float]:
    """||B1 A1 - B2 A2||² and ||B1 A1||², by the factors' QR and so without the full matrices."""
    import numpy as np

    def square(b: Any, a: Any) -> float:
        left, right = np.asarray(np.linalg.qr(b, mode="r")), np.asarray(np.linalg.qr(a.T, mode="r"))
        return float(np.linalg.norm(left @ right.T) ** 2)

    if first is None or second is None:
        size = square(*(first or second))
        return size, (0.0 if first is None else size)
    (b1, a1), (b2, a2) = first, second
    if (b1.shape[0], a1.shape[1]) != (b2.shape[0], a2.shape[1]):
        raise ModelError("the adapters are for weights of different shapes; they belong to different bases.")
    return square(np.hstack([b1, -b2]), np.vstack([a1, a2])), square(b1, a1)


def _tensor_distance(first: Tensor, second: Tensor) -> tuple[float, float]:
    a, b = read_numbers(first), read_numbers(second)
    size = float((a * a).sum())
    if a.shape != b.shape:
        return size + float((b * b).sum()), size
    return float(((a - b) ** 2).sum()), size


def _ordered(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose lists of names have one order; peft writes them from sets."""
    return {key: sorted(value, key=str) if isinstance(value, list) else value for key, value in config.items()}


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    """A record's values by dotted keys."""
    if not isinstance(record, dict) or not record:
        return {prefix: record} if prefix else {}
    found: dict[str, Any] = {}
    for key, value in record.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    keys = sorted(first.keys() | second.keys())
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}
