"""What a run writes about itself: run.json, recipe.yaml, the audit, the card and its last words."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lorasmith.console import is_first_process, say
from lorasmith.data.audit import write_audit
from lorasmith.data.mask import plain_contract, template_contract
from lorasmith.data.prepare import Prepared, preparations, source_name, source_names
from lorasmith.hardware import Hardware, held_gib, peak_memory_gib
from lorasmith.leaks import clean_folder
from lorasmith.memory.plans import Plan, keep_speed
from lorasmith.models import template_hash
from lorasmith.recipe import Recipe
from lorasmith.recipe_sections import recipe_text
from lorasmith.reliability.agreement import check_ranks_agree
from lorasmith.reliability.resume import Resume
from lorasmith.runs import folder as run_folder
from lorasmith.runs.card import ACCURACIES, HEADLINES, write_card
from lorasmith.runs.plots import draw
from lorasmith.runs.settings import world_size
from lorasmith.runs.watch import Watch
from lorasmith.upstream import TASKS

ACTING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")
NEXT = {
    "reward": "python scripts/reward.py {folder} --score ROWS",
    **dict.fromkeys(TASKS, "python scripts/eval.py {folder} --data ROWS"),
}
CONTRACT = "template_contract.json"
SHORTEST_TIMED = 5.0  # seconds of training, below which a speed says little


def begin(
    folder: Path,
    requested: Recipe,
    recipe: Recipe,
    reasons: dict[str, str],
    machine: Hardware,
    tokenizer: PreTrainedTokenizerBase,
    rows: Prepared,
    base: dict[str, Any],
    plan: Plan | None,
    contract: dict[str, Any],
    resume: Resume,
    method: str = "sft",
) -> dict[str, Any]:
    """Write what is known before training, into an emptied folder or beside the checkpoint that the run goes on from.

    The record is completed by `finish`.

    Raises:
        RunError: If another rank would train something else, or into another folder.
    """
    check_ranks_agree(folder, contract, resume)
    if resume.checkpoint is not None:
        earlier = run_folder.read_json(folder / "run.json", strict=False)
        if "contract" in earlier:
            earlier["resumed"] = [*earlier.get("resumed", []), {"step": resume.step, "time": run_folder.now()}]
            if is_first_process():
                run_folder.write_status(folder, None, "training", resume.step, "")
                run_folder.write_json(folder / "run.json", earlier)
            return earlier
    run: dict[str, Any] = {
        "method": method,
        "started": run_folder.now(),
        "requested_recipe": requested.model_dump(by_alias=True),
        "recipe": recipe.model_dump(by_alias=True),
        "reasons": reasons,
        "base": base,
        "data": {
            "train": source_names(recipe.data),
            "eval": source_name(recipe.data.eval) if recipe.data.eval else None,
            "fingerprint": rows.fingerprint,
            "preparations": preparations(recipe.data),
            **{f"{name}_account": asdict(account) for name, account in rows.accounts.items()},
        },
        "template_hash": template_hash(tokenizer),
        "stop_token": tokenizer.eos_token,
        "versions": run_folder.versions(),
        "hardware": asdict(machine),
        "contract": contract,
        "plan": plan.record(held_gib(machine)) if plan else None,
    }
    if is_first_process():
        if resume.checkpoint is None:
            run_folder.clear(folder)
        (folder / "private").mkdir(parents=True, exist_ok=True)
        run_folder.write_status(folder, None, "training", 0, "")
        run_folder.write_json(folder / "run.json", run)
        header = f"# The resolved recipe of this run; {method}.py reruns it.\n"
        (folder / "recipe.yaml").write_text(header + recipe_text(recipe), encoding="utf-8")
        write_audit(folder, tokenizer, rows.train, rows.accounts, rows.mask_check)
        made = plain_contract(tokenizer) if method in TASKS else template_contract(tokenizer)
        golden_ids = json.dumps(made, ensure_ascii=False, indent=1)
        (folder / CONTRACT).write_text(golden_ids + "\n", encoding="utf-8")
        refused = "".join(f"{line}\n" for line in rows.rejected)
        if refused:
            (folder / "private" / "rejected_rows.txt").write_text(refused, encoding="utf-8")
        golden = "".join(json.dumps(asdict(row)) + "\n" for row in rows.eval_rows[: recipe.proof.rows])
        (folder / "private" / "eval_rows.jsonl").write_text(golden, encoding="utf-8")
    return run


def add_evaluation(folder: Path, run: dict[str, Any], record: dict[str, Any]) -> None:
    """Put an evaluation into run.json, replacing one on the same rows, and write the card anew."""
    kept = [one for one in run.get("evaluations", []) if (one["data"], one["rows"]) != (record["data"], record["rows"])]
    run["evaluations"] = [*kept, record]
    run_folder.write_json(folder / "run.json", run)
    if "speed" in run:  # else it is no run of ours, but an adapter made from one
        write_card(folder, run)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What of adapter_config.json decides how the adapter's tensors act, as far as its method has it."""
    config = run_folder.read_json(folder / "adapter_config.json")
    return {key: config[key] for key in ACTING if key in config}


def finish(
    folder: Path,
    run: dict[str, Any],
    watch: Watch,
    model: PeftModel,
    metrics: dict[str, dict[str, float] | None],
    machine: Hardware,
    steps: int,
) -> None:
    """Complete the records of a trained run and say its last words.

    Args:
        metrics: "before" and "after", each with eval_loss, or None without evaluation rows.
    """
    if not is_first_process():
        return
    trainable, total = model.get_nb_trainable_parameters()
    run |= {
        "finished": run_folder.now(),
        "adapter": {"trainable": trainable, "total": total, "settings": adapter_settings(folder)},
        "speed": {
            "steps": steps,
            "seconds": round(watch.seconds, 2),
            "tokens": watch.tokens,
            "tokens_per_second": watch.tokens_per_second,
            "first_step_seconds": watch.first_step_seconds and round(watch.first_step_seconds, 2),
        },
        "memory": {
            "predicted_gib": run["plan"]["predicted_gib"] if run["plan"] else None,
            "measured_gib": round(peak_memory_gib(machine), 3),
        },
        "metrics": metrics,
        "evaluations": [],
    }
    run_folder.write_json(folder / "run.json", run)
    if run["plan"] and watch.tokens_per_second and watch.seconds > SHORTEST_TIMED:
        keep_speed(run["plan"]["kind"], watch.tokens_per_second / world_size())
    if not run["recipe"]["run"]["keep_checkpoints"]:
        run_folder.drop_checkpoints(folder)
    picture = draw(watch.history, folder / "plots", run["method"])
    write_card(folder, run)
    for line in clean_folder(folder):
        say(line)
    next_command = NEXT.get(run["method"], "python scripts/chat.py {folder}").format(folder=folder)
    run_folder.write_status(folder, 0, "done", steps, next_command)
    before, after = metrics["before"], metrics["after"]
    if before and after:
        said, key = ("held-out reward", "eval_reward") if run["method"] == "grpo" else ("evaluation loss", "eval_loss")
        if before.get(key) is not None and after.get(key) is not None:
            say(f"{said}: {before[key]:.4f} before, {after[key]:.4f} after")
        key, told = ACCURACIES.get(run["method"], ("", ""))
        if key in after:
            say(f"held out: the {told} in {after[key]:.1%}")
        for name in [one for one in HEADLINES if f"eval_{one}" in after] if run["method"] in TASKS else ():
            say(
                f"held out: {name} {before.get(f'eval_{name}', math.nan):.4f} before, {after[f'eval_{name}']:.4f} after"
            )
    say(f"picture: {picture}")
    say(f"adapter: {folder}")
    say(f"next: {next_command}")
