"""Merge an adapter, or several, into its base: a plain model, proven to answer as the live adapter does.

    python scripts/merge.py ADAPTER [ADAPTER ...] --out DIR

Tensor by tensor, in little memory, on any machine; the same command goes on after a kill. The proof loads the live
adapter and then the merged model, one after the other.
"""

import argparse
import gc
import shutil
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import LorasmithError, ModelError
from lorasmith.runs.ending import quiet, run_script

COMBINATIONS = (
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd",
    "dare_linear", "dare_ties", "magnitude_prune",
)  # fmt: skip


def main() -> None:
    arguments = parse_arguments()
    adapters = [Path(name) for name in arguments.adapter]
    weights = arguments.weights or [1.0] * len(adapters)
    if len(weights) != len(adapters):
        raise LorasmithError(f"--weights: {len(weights)} for {len(adapters)} adapters; give one for each.")
    quiet(arguments.offline)
    import torch

    from lorasmith import models
    from lorasmith.export import merge, proof, tensors
    from lorasmith.runs import proving
    from lorasmith.runs.merged_card import write_merged_card
    from lorasmith.runs.opening import find_base, open_model

    out = Path(arguments.out)
    section, run = find_base(arguments.adapter[0], arguments.base, arguments.trust_remote_code)
    base = models.base_identity(section)
    check_same_base(adapters, base)
    trained_dtype = getattr(torch, section.dtype if section.dtype != "auto" else "float32")
    choices = {"original": "none", "as trained": section.quantization}
    if arguments.merge_base != "auto":
        choices = {arguments.merge_base: choices[arguments.merge_base]}
    elif section.quantization == "none":
        choices = {"original": "none"}
    plans = {
        name: merge.Merge(
            Path(base["folder"]),
            tuple(zip(adapters, weights, strict=True)),
            base["fingerprint"],
            arguments.combine,
            arguments.density,
            quantization,
            trained_dtype,
            getattr(torch, arguments.dtype) if arguments.dtype else None,
        )
        for name, quantization in choices.items()
    }
    key = "+".join(plan.key[:16] for plan in plans.values())
    bounds = proving.limits_for("merged", run, arguments.limit)
    if proving.check_target(out, key, arguments.overwrite):
        say(f"{out} holds this very model, proven: it is reused. To merge anew: --overwrite")
        return

    live, found = None, {}
    size = tensors.Weights(Path(base["folder"])).size
    if not arguments.no_proof:
        proving.check_memory(size)
        opened = open_model(arguments.adapter[0], arguments.base, None, arguments.trust_remote_code)
        if len(adapters) > 1 or weights != [1.0]:
            from lorasmith.export.layers import with_adapters

            pairs = list(zip(adapters, weights, strict=True))
            opened.model = with_adapters(opened.model.unload(), pairs, arguments.combine, arguments.density).eval()
        golden, source = proving.golden_rows(adapters[0], opened.tokenizer, run)
        say(f"golden rows: {source}")
        live = proof.reference(proving.live_engine(opened), golden)
        del opened
        gc.collect()
    tokenizer, _ = models.load_tokenizer(section, adapters[0] if (adapters[0] / "tokenizer.json").is_file() else None)
    contract = proving.contract_of(adapters[0], tokenizer)
    for name, plan in plans.items():
        candidate = out.with_name(f"{out.name}.{name.replace(' ', '-')}")
        seen = "it is stored" if name == "original" else f"{plan.quantization} training saw it"
        say(f"merging into the base as {seen}")
        merge.merge(plan, tokenizer, candidate)
        found[name] = (candidate, measure(candidate, live, contract) if live else None)
    best = min(found, key=lambda name: found[name][1].kl_mean if found[name][1] else 0)
    if live and len(found) > 1:
        figures = ", ".join(f"{name} KL {one.kl_mean:.5f} top-1 {one.top1:.3f}" for name, (_, one) in found.items())
        say(f"base: {best} is closer to the live adapter ({figures})")
    for name, (candidate, _) in found.items():
        if name != best:
            shutil.rmtree(candidate)
    candidate, drift = found[best]
    sources = [str(folder.name) for folder in adapters]
    record = {"kind": "merged", "adapters": sources, "weights": weights, "base": base["name"], "base_kind": best}
    record |= {"revision": base["revision"], "candidates": {n: d.record() for n, (_, d) in found.items() if d}}
    write_merged_card(candidate, adapters, base, record, drift, out.name)
    proving.settle(candidate, out, key, drift, bounds, record)
    say(f"model: {out}")
    say(f"next: python scripts/chat.py {out}")


def measure(folder: Path, live: Any, contract: Any) -> Any:
    """The merged model against the live adapter, loaded as a stranger would load it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorasmith.export.live import LiveEngine
    from lorasmith.hardware import find_hardware
    from lorasmith.runs import proving

    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = find_hardware().device
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map={"": device})
    engine = LiveEngine("transformers", model, proving.stop_ids(model, tokenizer))
    found = proving.measured("merged", live, engine, tokenizer, contract)
    engine.close()
    del model
    gc.collect()
    return found


def check_same_base(adapters: list[Path], base: dict[str, Any]) -> None:
    """All adapters must have been trained on these very weights.

    Raises:
        ModelError: Naming the first that was not.
    """
    from lorasmith.runs.folder import read_json

    for folder in adapters:
        trained_on = read_json(folder / "run.json").get("base", {})
        if trained_on.get("fingerprint") not in (None, base["fingerprint"]):
            raise ModelError(f"{folder}: was trained on other weights than those of {base['name']}. Merge it alone.")


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
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="top1, kl or loss of the proof"
    )
    parser.add_argument("--no-proof", action="store_true", help="leave the model unproven, and marked so")
    parser.add_argument("--overwrite", action="store_true", help="replace another export in --out")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
