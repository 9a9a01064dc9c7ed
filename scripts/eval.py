"""Evaluate an adapter against its base on rows, both from one model in memory.

    python scripts/eval.py ADAPTER --data rows.jsonl [--limit N]

Prints loss, perplexity and exact match with a paired bootstrap interval, and writes them into the adapter's run.json
and card.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import ModelError
from lorasmith.runs.ending import quiet, run_script
from lorasmith.started import quick_imports


def main() -> None:
    arguments = parse_arguments()
    quiet(arguments.offline)
    with quick_imports():
        from peft import PeftModel

        from lorasmith.data.audit import account_lines, fit_lengths
        from lorasmith.data.formats import read_rows
        from lorasmith.data.prepare import source_name
        from lorasmith.data.render import answer_prompt, tokenize
        from lorasmith.runs.folder import now, read_json
        from lorasmith.runs.opening import open_model
        from lorasmith.runs.report import add_evaluation

    columns = read_json(Path(arguments.adapter) / "run.json").get("recipe", {}).get("data", {}).get("columns")
    read = read_rows(arguments.data, arguments.subset, arguments.split, columns=columns)
    rows = read.rows[: arguments.limit]
    say(f"rows: {len(rows)} of {arguments.data}, recognised as {read.kind}")
    opened = open_model(arguments.adapter, arguments.base, arguments.quantization, arguments.trust_remote_code)
    if not isinstance(opened.model, PeftModel):
        raise ModelError(f"{arguments.adapter} is a whole model; eval.py compares an adapter with its base.")
    train_on = opened.run.get("recipe", {}).get("data", {}).get("train_on", "assistant")
    positions = getattr(opened.model.config.get_text_config(), "max_position_embeddings", None)
    token_rows, account = fit_lengths(tokenize(opened.tokenizer, rows, train_on), positions, "drop")
    for line in account_lines(account):
        say(line)
    kept = {row.place for row in token_rows}
    rows = [row for row in rows if row.place in kept]
    prompts = [answer_prompt(opened.tokenizer, row) for row in rows] if not rows[0].text else []
    longest = max(len(opened.tokenizer(row.answer)["input_ids"]) for row in rows)
    budget = arguments.max_new_tokens or min(longest + 16, 512)

    # The adapter's parts are switched off for the base, so both are scored on the very same frozen weights.
    found = {"adapter": score(opened, token_rows, prompts, rows, budget, arguments.batch)}
    with opened.model.disable_adapter():
        found["base"] = score(opened, token_rows, prompts, rows, budget, arguments.batch)
    scores = compare(found)
    for line in table(scores, len(rows)):
        say(line)
    record = {"data": source_name(arguments.data), "rows": len(rows), "time": now(), "scores": scores}
    if opened.run:
        add_evaluation(Path(arguments.adapter), opened.run, record)
        say(f"written: {arguments.adapter}/run.json and README.md")
    say(f"next: python scripts/chat.py {arguments.adapter}")


def score(opened: Any, token_rows: Any, prompts: Any, rows: Any, budget: int, batch: int) -> dict[str, Any]:
    """Row losses and, for rows with a prompt, exact matches of the model as it is switched now."""
    from lorasmith.evaluation.scores import exact_matches, greedy_answers, row_losses

    pairs = [(row.input_ids, row.labels) for row in token_rows]
    losses = row_losses(opened.model, pairs, opened.tokenizer.pad_token_id, batch)
    if not prompts:
        return {"losses": losses}
    answers = greedy_answers(opened.model, opened.tokenizer, prompts, budget, batch)
    return {"losses": losses, "matches": exact_matches(answers, [row.answer for row in rows])}


def compare(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each score of both, with its difference, interval and verdict."""
    from lorasmith.evaluation.compare import loss_difference, match_difference

    base, adapter = found["base"], found["adapter"]
    differences = {"loss": (loss_difference(base["losses"], adapter["losses"]), True)}
    if "matches" in base:
        differences["exact match"] = (match_difference(base["matches"], adapter["matches"]), False)
    return {
        name: asdict(one) | {"delta": one.delta, "verdict": one.verdict(lower_is_better=lower)}
        for name, (one, lower) in differences.items()
    }


def table(scores: dict[str, dict[str, Any]], rows: int) -> list[str]:
    """The scores as aligned columns, and the verdict as a sentence."""
    from lorasmith.evaluation.compare import perplexity

    lines = [f"{'':12} {'base':>10} {'adapter':>10}  difference (95 % interval)"]
    for name, one in scores.items():
        interval = f"{one['delta']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})"
        lines.append(f"{name:12} {one['base']:10.3f} {one['adapter']:10.3f}  {interval}")
        if name == "loss":
            both = (perplexity(one["base"]), perplexity(one["adapter"]))
            lines.append(f"{'perplexity':12} {both[0]:10.2f} {both[1]:10.2f}")
    verdicts = ", ".join(f"{name}: {one['verdict']}" for name, one in scores.items())
    return [*lines, f"the adapter against its base on {rows} rows: {verdicts}"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    parser.add_argument("adapter", help="folder of an adapter")
    parser.add_argument("--data", required=True, help="rows: file or hub id")
    parser.add_argument("--subset", help="configuration of a hub data set")
    parser.add_argument("--split", default="train", help="split of a hub data set")
    parser.add_argument("--limit", type=positive, metavar="N", help="use the first N rows")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--quantization", choices=("none", "int8", "nf4", "fp4"), help="of the base, if not as trained")
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest answer; default: the longest expected one and 16"
    )
    parser.add_argument("--batch", type=positive, metavar="N", default=16, help="rows at a time")
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"`{text}`; expected a whole number above 0")
    return number


if __name__ == "__main__":
    run_script(main)
