"""What merge.py and quantize.py share: the live adapter asked, and its merge into the closer base."""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lorasmith import models
from lorasmith.console import say
from lorasmith.errors import ModelError
from lorasmith.evaluation.compare import loss_difference
from lorasmith.evaluation.scores import RowLoss, row_losses
from lorasmith.export import proof, tensors
from lorasmith.export.layers import with_adapters
from lorasmith.export.live import LiveEngine
from lorasmith.export.merge import Merge, merge
from lorasmith.export.proof import Drift, Reference
from lorasmith.export.score_proof import ScoreDrift, ScoreReference
from lorasmith.export.task_proof import TaskReference
from lorasmith.hardware import find_hardware
from lorasmith.recipe import Model
from lorasmith.runs import proving
from lorasmith.runs.folder import read_json
from lorasmith.runs.opening import find_base, open_model
from lorasmith.runs.task_file import REWARD, head_settings, task_of

BATCH = 8  # rows scored at a time


@dataclass(slots=True)
class Source:
    """Adapters, or a plain model, and what was learnt of them before anything is exported.

    Attributes:
        adapters: Folders with their weights; empty for a plain model.
        base: Identity of the base, or of the plain model.
        run: run.json of the first adapter.
        live: What it says on the golden rows; None without a proof.
        task: What it is for, if it is no language model (`task_file.task_of`).
        contract: The golden conversations with the ids that it was trained with.
    """

    adapters: list[tuple[Path, float]]
    section: Model
    base: dict[str, Any]
    run: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    contract: list[dict[str, object]]
    combination: str
    density: float
    live: Reference | ScoreReference | TaskReference | None = None
    task: dict[str, Any] = field(default_factory=dict)


def open_source(
    names: Sequence[str],
    weights: Sequence[float] = (1.0,),
    combination: str = "cat",
    density: float = 0.5,
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Source:
    """Find base, tokenizer and contract; nothing large is read yet.

    Raises:
        ModelError: If an adapter was trained on other weights.
    """
    section, run = find_base(names[0], base, trust_remote_code)
    identity = models.base_identity(section)
    folders = [Path(name) for name in names]
    is_adapter = (folders[0] / "adapter_config.json").is_file()
    for folder in folders if is_adapter else []:
        trained_on = read_json(folder / "run.json").get("base", {})
        if trained_on.get("fingerprint") not in (None, identity["fingerprint"]):
            raise ModelError(f"{folder}: was trained on other weights than those of {section.name}. Export it alone.")
    own = folders[0] if is_adapter and (folders[0] / "tokenizer.json").is_file() else None
    task = task_of(folders[0])
    stops = task.get("method", "") in ("", REWARD, "seq2seq")
    tokenizer, _ = models.load_tokenizer(section, own, stops=stops)
    contract = proving.contract_of(folders[0], tokenizer)
    pairs = list(zip(folders, weights, strict=True)) if is_adapter else []
    return Source(pairs, section, identity, run, tokenizer, contract, combination, density, task=task)


def ask(source: Source, name: str, base: str | None, trust_remote_code: bool) -> None:
    """Put the golden rows to the live adapter, in the precision it was trained in, and let it go again."""
    proving.check_memory(tensors.Weights(Path(source.base["folder"])).size)
    opened = open_model(name, base, None, trust_remote_code)
    if len(source.adapters) > 1 or any(weight != 1 for _, weight in source.adapters):
        unloaded: Any = opened.model
        opened.model = with_adapters(unloaded.unload(), source.adapters, source.combination, source.density)
    rows, said = proving.golden_rows(Path(name), opened.tokenizer, source.run)
    say(f"golden rows: {said}")
    source.live = proof.reference(proving.live_engine(opened), rows)
    del opened
    gc.collect()


def plans(source: Source, base_kind: str = "auto", dtype: str | None = None) -> dict[str, Merge]:
    """The merges to choose among, by the base that they are made into.

    Args:
        base_kind: original, as trained, or auto: both where training saw a quantized base.
        dtype: Of the result; None: as the base is stored.
    """
    section = source.section
    # A reward model is a classifier with one output.
    is_scorer = source.task.get("method") == REWARD
    task = "text_classification" if is_scorer else str(source.task.get("method", ""))
    settings = {"num_labels": 1} if is_scorer else head_settings(source.task)
    choices = {"original": "none"}
    if section.quantization != "none":
        choices |= {"as trained": section.quantization}
    if base_kind != "auto" and base_kind in choices:
        choices = {base_kind: choices[base_kind]}
    return {
        name: Merge(
            Path(source.base["folder"]),
            tuple(source.adapters),
            source.base["fingerprint"],
            source.combination,
            source.density,
            quantization,
            getattr(torch, section.dtype if section.dtype != "auto" else "float32"),
            getattr(torch, dtype) if dtype else None,
            task,
            settings,
        )
        for name, quantization in choices.items()
    }


@dataclass(frozen=True, slots=True)
class Merged:
    """The merge that is closest to the live adapter.

    Attributes:
        folder: Where it lies, whole, under a name that nobody takes for the result.
        base_kind: original, or as trained.
        candidates: The figures of each that was measured.
    """

    folder: Path
    base_kind: str
    drift: Any
    candidates: dict[str, Any]


def merge_closest(
    source: Source, chosen: dict[str, Merge], out: Path, measure: Callable[..., Drift | ScoreDrift] | None = None
) -> Merged:
    """Merge into each base, measure each, keep the closer. With a name of its own each survives a kill.

    Args:
        measure: Compares what the source's adapter said with a merge in a folder; by default `measure_merged`.
    """
    found: dict[str, tuple[Path, Drift | ScoreDrift | None]] = {}
    measure = measure or measure_merged
    for name, plan in chosen.items():
        folder = out.with_name(f"{out.name}.{name.replace(' ', '-')}")
        seen = "it is stored" if name == "original" else f"{plan.quantization} training saw it"
        say(f"merging into the base as {seen}")
        merge(plan, source.tokenizer, folder)
        found[name] = (folder, measure(source, folder) if source.live else None)
    candidates = {name: drift for name, (_, drift) in found.items() if drift}
    best = min(candidates, key=lambda name: candidates[name].distance) if candidates else next(iter(found))
    if len(candidates) > 1:
        figures = ", ".join(f"{name} {one.short}" for name, one in candidates.items())
        say(f"base: {best} is closer to the live adapter ({figures})")
    for name, (folder, _) in found.items():
        if name != best:
            shutil.rmtree(folder)
    return Merged(found[best][0], best, found[best][1], candidates)


def fares(source: Source, folder: Path, base: str | None, trust_remote_code: bool) -> list[dict[str, Any]]:
    """How each adapter's own evaluation rows fare in the merge of several, said as it goes.

    Returns:
        For each: its name, rows, loss alone and merged (nats a token), with the paired bootstrap's interval.
    """
    alone: list[tuple[Path, list[tuple[list[int], list[int]]], list[RowLoss]]] = []
    for place, _ in source.adapters:
        opened = open_model(str(place), base, None, trust_remote_code)
        golden, _ = proving.golden_rows(place, opened.tokenizer, opened.run)
        rows = [(row.ids, row.labels) for row in golden]
        live: Any = opened.model
        alone.append((place, rows, row_losses(live, rows, pad_of(opened.tokenizer), BATCH)))
        del opened, live
        gc.collect()
    device: Any = {"": find_hardware().device}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=device)
    found = []
    for place, rows, before in alone:
        one = loss_difference(before, row_losses(model, rows, pad_of(source.tokenizer), BATCH))
        interval = f"{one.low:+.4f} to {one.high:+.4f}"
        say(f"{place}: loss {one.base:.4f} alone, {one.other:.4f} merged ({interval}): {one.verdict}")
        figures = {"alone": one.base, "merged": one.other, "low": one.low, "high": one.high, "verdict": one.verdict}
        found.append({"adapter": place.name, "rows": len(rows), **figures})
    return found


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def measure_merged(source: Source, folder: Path) -> Drift:
    """A merged model against the live adapter, loaded as a stranger would load it."""
    assert isinstance(source.live, Reference)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device: Any = {"": find_hardware().device}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=device)
    engine = LiveEngine("transformers", model, proving.stop_ids(model, tokenizer))
    found = proving.measured("merged", source.live, engine, tokenizer, source.contract)
    engine.close()
    del model
    gc.collect()
    return found
