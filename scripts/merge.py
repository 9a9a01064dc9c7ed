"""Merge an adapter, or several, into its base: a plain model, proven to answer as the live adapter does.

    python scripts/merge.py ADAPTER [ADAPTER ...] --out DIR

Tensor by tensor, in little memory, on any machine; the same command goes on after a kill. The proof loads the live
adapter and then the merged model, one after the other.
"""

import argparse
from pathlib import Path

from lorasmith.console import say
from lorasmith.errors import LorasmithError, ModelError
from lorasmith.runs.ending import quiet, run_script
from lorasmith.started import quick_imports

COMBINATIONS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd",
    "dare_linear", "dare_ties", "magnitude_prune",
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    weights = arguments.weights or [1.0] * len(arguments.adapter)
    if len(weights) != len(arguments.adapter):
        raise LorasmithError(f"--weights: {len(weights)} for {len(arguments.adapter)} adapters; give one for each.")
    quiet(arguments.offline)
    with quick_imports():
        from lorasmith.runs import merging, merging_scores, merging_tasks, proving
        from lorasmith.runs.merged_card import write_merged_card, write_scorer_card

    out = Path(arguments.out)
    trust = arguments.trust_remote_code
    is_scorer = merging_scores.is_scorer(arguments.adapter, weights, arguments.eval)
    is_task = merging_tasks.is_task(arguments.adapter, weights, arguments.eval)
    source = merging.open_source(
        arguments.adapter, weights, arguments.combine, arguments.density, arguments.base, trust
    )
    if not source.adapters:
        raise ModelError(f"{arguments.adapter[0]}: no adapter here (adapter_config.json is missing).")
    plans = merging.plans(source, arguments.merge_base, arguments.dtype)
    key = "+".join(plan.key[:16] for plan in plans.values())
    if is_scorer:
        bounds, ask, measure = merging_scores.limits_for(arguments.limit), merging_scores.ask, merging_scores.measure
    else:
        bounds = proving.limits_for("merged", source.run, arguments.limit)
        ask, measure = merging.ask, merging.measure_merged
    if is_task:
        ask, measure = merging_tasks.ask, merging_tasks.measure
    if proving.check_target(out, key, arguments.overwrite):
        say(f"{out} holds this very model, proven: it is reused. To merge anew: --overwrite")
        return

    if not arguments.no_proof:
        ask(source, arguments.adapter[0], arguments.base, trust)
    merged = merging.merge_closest(source, plans, out, measure)
    record: dict[str, object] = {
        "kind": "merged",
        "adapters": [folder.name for folder, _ in source.adapters],
        "weights": weights,
        "base": source.base["name"],
        "revision": source.base["revision"],
        "base_kind": merged.base_kind,
        "candidates": {name: drift.record() for name, drift in merged.candidates.items()},
    }
    if arguments.eval:
        record["fares"] = merging.fares(source, merged.folder, arguments.base, trust)
    folders = [folder for folder, _ in source.adapters]
    write_card = write_scorer_card if is_scorer else write_merged_card
    if is_task:
        merging_tasks.keep_task(folders[0], merged.folder)
        record["task"] = source.task
    write_card(merged.folder, folders, source.base, record, merged.drift, out.name)
    proving.settle(merged.folder, out, key, merged.drift, bounds, record)
    say(f"model: {out}")
    following = f"predict.py {out} ROWS" if is_task else f"chat.py {out}"
    say(f"next: python scripts/{f'reward.py {out} --score ROWS' if is_scorer else following}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", nargs="+", help="folder of an adapter; of several, one model is made")
    parser.add_argument("--out", required=True, help="folder of the merged model")
    parser.add_argument("--weights", type=float, nargs="+", metavar="W", help="of each adapter; default 1")
    parser.add_argument("--combine", choices=COMBINATIONS, default="cat", help="how several become one; cat is exact")
    parser.add_argument("--density", type=float, default=0.5, help="share kept by ties, dare and magnitude_prune")
    parser.add_argument(
        "--merge-base", choices=("auto", "original", "as trained"), default="auto", help="auto: whichever is closer"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as the base is stored")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="top1, kl or loss of the proof; of a reward model order or difference",
    )
    parser.add_argument("--eval", action="store_true", help="how each adapter's own rows fare after")
    parser.add_argument("--no-proof", action="store_true", help="leave the model unproven, and marked so")
    parser.add_argument("--overwrite", action="store_true", help="replace another export in --out")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
