"""What every export shares: golden rows, limits, the verdict, and the folder that appears only when it is proven."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import psutil
from transformers import PreTrainedTokenizerBase

from lorasmith import limits
from lorasmith.console import complain, say
from lorasmith.data.mask import keeps_contract, template_contract
from lorasmith.data.render import tokenize
from lorasmith.data.rows import Row, conversation
from lorasmith.errors import DivergedError, FitError, LorasmithError, RunError
from lorasmith.export.engines import Engine, listed
from lorasmith.export.live import LiveEngine
from lorasmith.export.merge import JOURNAL
from lorasmith.export.proof import STAND_INS, Drift, GoldenRow, Reference, drift, side_by_side
from lorasmith.hardware import find_hardware
from lorasmith.limits import LIMITS, Limits, ScoreLimits
from lorasmith.runs import folder as run_folder
from lorasmith.runs.opening import UNPROVEN, Opened

PROOF = "proof.json"


class Measured(Protocol):
    """How far an export drifted: a `Drift`, or a `ScoreDrift` of a reward model."""

    @property
    def cause(self) -> str: ...
    def beyond(self, limits: Any) -> list[str]: ...
    def record(self) -> dict[str, Any]: ...


def check_memory(size: int) -> None:
    """Refuse a proof that this machine's memory cannot hold: the model is loaded whole for it.

    Args:
        size: Bytes of the weights.

    Raises:
        FitError: Naming what is there and what is wanted.
    """
    free, needed = psutil.virtual_memory().available, int(1.2 * size)
    if find_hardware().device == "cpu" and free < needed:
        raise FitError(
            f"the proof loads the model whole: {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} are free. "
            "Run it on a larger machine, or with --no-proof, which marks the model UNPROVEN."
        )


def golden_rows(
    folder: Path, tokenizer: PreTrainedTokenizerBase, run: dict[str, Any], most: int = limits.ROWS
) -> tuple[list[GoldenRow], str]:
    """The rows that exports of an adapter are proven on, and where they come from.

    Raises:
        RunError: If the run's own rows cannot be read.
    """
    rows = kept_rows(folder, most)
    data = run.get("recipe", {}).get("data", {})
    positions = run.get("recipe", {}).get("trainer", {}).get("max_length")
    source = f"{len(rows)} rows of its own evaluation"
    if not rows:
        source = f"{len(STAND_INS)} made-up rows, since the run kept none"
        rows = [
            conversation(f"made up {n}", [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
            if tokenizer.chat_template
            else Row(f"made up {n}", prompt=f"{asked}\n", completion=answer)
            for n, (asked, answer) in enumerate(STAND_INS)
        ]
    tokens = tokenize(tokenizer, rows, data.get("train_on", "assistant"), [])
    golden = [GoldenRow(one.input_ids.tolist()[:positions], one.labels.tolist()[:positions]) for one in tokens]
    return [one for one in golden if one.positions], source


def kept_rows(folder: Path, most: int) -> list[Row]:
    """The evaluation rows that a run kept, or none.

    Raises:
        RunError: If they cannot be read.
    """
    path = folder / "private" / "eval_rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return [Row(**{**record, "trained": tuple(record["trained"])}) for record in map(json.loads, lines[:most])]
    except (ValueError, TypeError, KeyError):
        raise RunError(f"{path}: not the rows that a run keeps. Remove the file; made-up rows stand in.") from None


def live_engine(opened: Opened) -> LiveEngine:
    """The adapter as it was trained."""
    recipe = opened.run.get("recipe", {}).get("model", {})
    precision = recipe.get("quantization", "none")
    name = f"the live adapter ({precision if precision != 'none' else recipe.get('dtype', 'as stored')})"
    return LiveEngine(name, opened.model, stop_ids(opened.model, opened.tokenizer))


def stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends an answer."""
    return {int(tokenizer.eos_token_id), *listed(model.generation_config.eos_token_id)}


def limits_for(kind: str, run: dict[str, Any], given: list[str]) -> Limits:
    """The limits of a kind of export: the command line's over the recipe's over the project's.

    Args:
        given: `name=value` texts.

    Raises:
        LorasmithError: If a name or value is none.
    """
    found = replace(LIMITS[kind], **run.get("recipe", {}).get("proof", {}).get("limits", {}).get(kind, {}))
    for text in given:
        name, _, value = text.partition("=")
        try:
            if name not in Limits.__dataclass_fields__:
                raise ValueError
            found = replace(found, **{name: float(value)})
        except ValueError:
            known = ", ".join(Limits.__dataclass_fields__)
            raise LorasmithError(f"--limit {text}: expected NAME=NUMBER, with one of {known}.") from None
    return found


def measured(
    kind: str, live: Reference, engine: Engine, tokenizer: PreTrainedTokenizerBase, contract: list[dict[str, object]]
) -> Drift:
    """An artefact against the live adapter, with its template; said.

    Args:
        tokenizer: The artefact's own.
        contract: The golden conversations with the ids that training rendered.
    """
    found = drift(kind, live, engine, lambda ids: str(tokenizer.decode(ids)))
    found.template = keeps_contract(tokenizer, contract, kind)
    for line in [*found.lines(), *side_by_side(found)]:
        say(line)
    return found


def contract_of(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """The golden conversations as training rendered them, or as the adapter's tokenizer does for somebody else's."""
    path = folder / "template_contract.json"
    if not path.is_file():
        return template_contract(tokenizer)
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def check_target(out: Path, key: str, overwrite: bool) -> bool:
    """Whether this very export is there already, proven.

    Raises:
        RunError: If something else is.
    """
    if not out.exists():
        return False
    proof = run_folder.read_json(out / PROOF, strict=False) if out.is_dir() else {}
    if proof.get("key") == key and not overwrite:
        return True
    if not proof:
        raise RunError(f"{out} exists and is no export of ours. Choose another --out.")
    if not overwrite:
        raise RunError(f"{out} holds another export. Choose another --out, or --overwrite.")
    return False


def drift_of(folder: Path) -> Drift | None:
    """The figures of an export that was proven before."""
    record = run_folder.read_json(folder / PROOF, strict=False).get("drift", {})
    known = {key: value for key, value in record.items() if key in Drift.__dataclass_fields__}
    return Drift(**known) if known else None


def settle(
    candidate: Path,
    out: Path,
    key: str,
    found: Measured | None,
    bounds: Limits | ScoreLimits,
    record: dict[str, Any],
) -> None:
    """Give a whole export its name when it is proven, and another that says so when it is not.

    Args:
        candidate: The export, whole, under a name that nobody takes for it.
        found: How far it drifted; None where the proof was left out on request.
        record: What else proof.json keeps.

    Raises:
        DivergedError: If it is past a limit.
    """
    problems = found.beyond(bounds) if found else []
    proven = found is not None and not problems
    proof = {"key": key, "proven": proven, "time": run_folder.now(), **record}
    if found:
        proof |= {"drift": found.record(), "limits": {name: getattr(bounds, name) for name in bounds.__slots__}}
    if found and problems:
        proof["likely_cause"] = found.cause
    run_folder.write_json(candidate / PROOF, proof)
    (candidate / JOURNAL).unlink(missing_ok=True)
    (candidate / UNPROVEN).unlink(missing_ok=True)
    if not proven:
        why = "; ".join(problems) or "it was not compared with the live adapter (--no-proof)"
        (candidate / UNPROVEN).write_text(f"{why}\n", encoding="utf-8")
    target = out if not problems else out.with_name(f"{out.name}.{UNPROVEN}")
    if target.exists():
        aside = target.with_name(f".{target.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
        os.replace(candidate, target)
        shutil.rmtree(aside)
    else:
        os.replace(candidate, target)
    if problems:
        assert found is not None
        raise DivergedError(f"{out} is not proven: {'; '.join(problems)}. Likely: {found.cause}. See {target}.")
    if not found:
        complain(f"{out} is UNPROVEN: nobody has compared it with the live adapter.")
