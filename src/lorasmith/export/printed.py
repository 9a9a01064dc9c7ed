"""Records of adapters as lines for a terminal."""

import json
from pathlib import Path
from typing import Any

from lorasmith.export.adapter_file import record_at, value_at

MIB = 1 << 20
NOISE = 1e-12  # relative difference that float64 makes of equal updates


def contents(found: dict[str, Any]) -> list[str]:
    """What `contents.describe` found."""
    rank = f", rank {found['rank']}, alpha {found['alpha']}" if found["alpha"] is not None else ""
    layers = found["layers"]
    where = f" in {len(layers)} layers ({layers[0]} to {layers[-1]})" if layers else ""
    fingerprint = found["base_fingerprint"]
    weights = f", weights {fingerprint[:12]}" if isinstance(fingerprint, str) else ""
    bill = [(kind, row["tensors"], f"{row['parameters']:,}", mib(row["bytes"])) for kind, row in found["bill"].items()]
    return [
        f"method: {found['method']}{rank}, saved as {', '.join(found['dtypes'])}",
        f"modules: {', '.join(f'{name} {count}' for name, count in found['modules'].items())}{where}",
        *(f"rank {rank:>4}: {module}" for module, rank in found["ranks"].items()),
        *table(
            ("part", "tensors", "parameters", "MiB"),
            [*bill, ("all", "", f"{found['parameters']:,}", mib(found["bytes"]))],
        ),
        f"base: {found['base']}, revision {found['revision'] or 'not recorded'}{weights}",
        f"licence: {found['licence'] or 'not stated in README.md'}; the base model's applies too",
        *origin(found["trained"]),
    ]


def origin(trained: dict[str, Any] | None) -> list[str]:
    """Where an adapter comes from, as its run.json says."""
    if trained is None:
        return ["trained: not recorded (no run.json)"]
    lines = [f"trained: {trained['date']}, {trained['method']} on {trained['rows']} rows of {trained['data']}"]
    if isinstance(trained["made_from"], dict):
        facts = {key: one for key, one in trained["made_from"].items() if not isinstance(one, dict | list)}
        lines.append("made from: " + ", ".join(f"{key} {one}" for key, one in facts.items()))
    before, after = trained["loss_before"], trained["loss_after"]
    if isinstance(before, float) and isinstance(after, float):
        lines.append(f"evaluation loss: {before:.4f} before, {after:.4f} after")
    for one in trained["evaluations"] if isinstance(trained["evaluations"], list) else []:
        for name, score in record_at(one, "scores").items():
            base, adapter = value_at(score, "base"), value_at(score, "adapter")
            if isinstance(base, int | float) and isinstance(adapter, int | float):
                rows = f"{value_at(one, 'rows')} rows of {value_at(one, 'data')}"
                lines.append(f"{name} on {rows}: base {base:.4f}, adapter {adapter:.4f}")
    if isinstance(trained["versions"], dict):
        lines.append("versions: " + ", ".join(f"{name} {one}" for name, one in trained["versions"].items()))
    return lines


def difference(found: dict[str, Any], first: Path, second: Path) -> list[str]:
    """What `contents.compare` found."""
    lines = [
        f"{what} {key}: {json.dumps(a)}, in the other {json.dumps(b)}"
        for what in ("config", "recipe")
        for key, (a, b) in found[what].items()
    ]
    for key, which in (("only_first", first), ("only_second", second)):
        lines += [f"only in {which}: {name}" for name in found[key]]
    rows = []
    for kind, row in found["kinds"].items():
        layer = "-" if row["layer"] is None else row["layer"]
        rows.append((kind, row["modules"], _relative(row["relative"]), _relative(row["largest"]), layer))
    lines.append("difference of what they add to the base's weights, ||a - b|| / ||a||:")
    return [*lines, *table(("kind", "modules", "all", "largest", "in layer"), rows)]


def runs(found: list[dict[str, Any]]) -> list[str]:
    """What `contents.list_runs` found."""
    rows = [
        (
            one["name"],
            one["base"] or "-",
            "-" if one["method"] is None else f"{str(one['method']).lower()} {one['rank'] or ''}".rstrip(),
            "-" if one["bytes"] is None else mib(one["bytes"]),
            str(one["date"] or "-")[:10],
            _score(one),
            one["status"],
        )
        for one in found
    ]
    return table(("name", "base", "method", "MiB", "date", "base -> adapter", "status"), rows)


def _score(one: dict[str, Any]) -> str:
    """A run's best score, or its loss before and after."""
    if one["best_score"] and (one["best_score"][0] != "loss" or not isinstance(one["loss_after"], float)):
        name, before, after = one["best_score"]
        return f"{name} {before:.3f} -> {after:.3f}"
    before, after = one["loss_before"], one["loss_after"]
    if isinstance(before, float) and isinstance(after, float):
        return f"loss {before:.3f} -> {after:.3f}"
    return "-"


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    """Aligned columns, all but the first to the right."""
    texts = [head, *(tuple(" ".join(str(cell).split()) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    lines = []
    for row in texts:
        right = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([f"{row[0]:<{widths[0]}}", *right]).rstrip())
    return lines


def mib(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / MIB:.2f}"


def _relative(value: float | None) -> str:
    return "new" if value is None else "0" if value < NOISE else f"{value:.2e}"
