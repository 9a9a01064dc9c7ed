"""Quantize a model or an adapter for where it will run, each kind proven by the engine that runs it.

    python scripts/quantize.py MODEL_OR_ADAPTER --to bnb-nf4,gguf:q8_0 --out DIR
    python scripts/quantize.py MODEL_OR_ADAPTER --to all --out DIR

An adapter is merged first. Each kind gets a folder of its own in DIR; a table of size, agreement, loss and speed is
printed and written beside them.
"""

import argparse
import gc
import hashlib
import shutil
from pathlib import Path

from lorasmith.console import complain, say
from lorasmith.errors import DivergedError, LorasmithError
from lorasmith.runs.ending import quiet, run_script
from lorasmith.started import quick_imports


def main() -> None:
    arguments = parse_arguments()
    quiet(arguments.offline)
    with quick_imports():
        from lorasmith.runs import merging, proving, quantizing
        from lorasmith.runs.merged_card import write_merged_card
        from lorasmith.runs.opening import refuse_scorer

    out, trust = Path(arguments.out), arguments.trust_remote_code
    refuse_scorer(arguments.model, "tokens, by which exports are proven here")
    source = merging.open_source([arguments.model], base=arguments.base, trust_remote_code=trust)
    kinds, left = quantizing.kinds_asked(arguments.to)
    for line in left:
        say(line)
    plans = merging.plans(source, arguments.merge_base, arguments.dtype) if source.adapters else {}
    origin = "+".join(plan.key for plan in plans.values()) or source.base["fingerprint"]
    merging.ask(source, arguments.model, arguments.base, trust)
    assert source.live is not None

    if source.adapters:
        out.mkdir(parents=True, exist_ok=True)
        merged = merging.merge_closest(source, plans, out / ".merged")
        bounds = proving.limits_for("merged", source.run, [])
        problems = merged.drift.beyond(bounds) if merged.drift else []
        if problems:
            raise DivergedError(f"{arguments.model}: its merge is not proven: {'; '.join(problems)}.")
        folder = merged.folder
    else:
        folder = Path(source.base["folder"])
    settings = quantizing.Settings(
        folder,
        Path(source.base["folder"]),
        source.adapters[0][0] if source.adapters else None,
        source.live.rows,
        arguments.llama_cpp_dir,
        arguments.pre_tokenizer,
        trust,
    )
    lines = []
    for kind in kinds:
        target = out / kind.replace(":", "-")
        key = hashlib.sha256(f"{origin} {kind}".encode()).hexdigest()[:32]
        bounds = proving.limits_for(kind, source.run, arguments.limit)
        candidate = target.with_name(f"{target.name}.candidate")
        drift, verdict = None, "proven"
        try:
            if proving.check_target(target, key, arguments.overwrite):
                say(f"{target} holds this very export, proven: it is reused")
                lines.append(quantizing.Line(kind, quantizing.size_of(target), proving.drift_of(target), verdict))
                continue
            shutil.rmtree(candidate, ignore_errors=True)
            quantizing.write(kind, candidate, settings)
            engine = quantizing.engine_of(kind, candidate, settings)
            try:
                tokenizer = quantizing.tokenizer_of(kind, candidate, settings)
                drift = proving.measured(kind, source.live, engine, tokenizer, source.contract)
            finally:
                engine.close()
                gc.collect()
            names = [one.name for one, _ in source.adapters] or [Path(arguments.model).name]
            record = {"kind": kind, "adapters": names, "base": source.base["name"]}
            record |= {"revision": source.base["revision"], "bytes": quantizing.size_of(candidate)}
            write_merged_card(candidate, [one for one, _ in source.adapters], source.base, record, drift, target.name)
            size = quantizing.size_of(candidate)
            proving.settle(candidate, target, key, drift, bounds, record)
        except DivergedError as error:
            complain(f"{kind}: {error}")
            verdict = "refused: " + "; ".join(drift.beyond(bounds) if drift else ["not finite"])
            size = quantizing.size_of(target.with_name(f"{target.name}.{proving.UNPROVEN}"))
        except LorasmithError as error:
            shutil.rmtree(candidate, ignore_errors=True)
            if len(kinds) == 1:
                raise
            complain(f"{kind}: {error}")
            size, verdict = 0, "not made"
        lines.append(quantizing.Line(kind, size, drift, verdict))
    if source.adapters:
        shutil.rmtree(folder)
    say(quantizing.table(lines))
    (out / "table.md").write_text(quantizing.table(lines) + "\n", encoding="utf-8")
    picture = quantizing.draw_tradeoff(lines, out / "tradeoff.png")
    if picture:
        say(f"picture: {picture}")
    refused = [line.kind for line in lines if line.verdict.startswith("refused")]
    if refused:
        raise DivergedError(f"not proven: {', '.join(refused)}; what drifted stands in {out}/table.md.")
    missing = [line.kind for line in lines if line.verdict == "not made"]
    if missing:
        raise LorasmithError(f"not made: {', '.join(missing)}; the lines above say why.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an adapter, of a merged model, or a model's hub id")
    parser.add_argument(
        "--to", required=True, metavar="KIND[,KIND]", help="all, bnb-nf4, gguf:q8_0, ...: docs/export.md"
    )
    parser.add_argument("--out", required=True, help="folder in which each kind gets its own")
    parser.add_argument("--merge-base", choices=("auto", "original", "as trained"), default="auto", help="as merge.py")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the merge; default: as stored")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="NAME=VALUE", help="of the proof: top1, kl, loss"
    )
    parser.add_argument("--llama-cpp-dir", type=Path, help="a checkout of llama.cpp, in place of the pinned converter")
    parser.add_argument(
        "--pre-tokenizer", help="llama.cpp's name for how the tokenizer splits text, where it asks for it"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace exports that are there")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
