"""Rows worth training on: raw files go in; clean, single, masked and split rows come out, with a page that shows them.

    python scripts/prepare.py RECIPE [section.key=value ...]
    python scripts/prepare.py raw/*.jsonl --out data/support [--to messages] [section.key=value ...]

Writes train.jsonl, eval.jsonl, test.jsonl, report.html, dataset_card.md, recipe.yaml and manifest.json into the output
folder; what was left out is listed in private/. Interrupted, the same command goes on. --dry-run reads the first rows,
prints the resolved recipe and writes nothing.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import RecipeError
from lorasmith.listening import listener
from lorasmith.preparation import Preparation, load_preparation
from lorasmith.recipe_sections import recipe_text
from lorasmith.runs.ending import quiet, run_script


def main() -> None:
    arguments = parse_arguments()
    listener.listen()
    recipe = wanted(arguments)
    quiet()
    from lorasmith.preparing import decide, gather, odd, pipeline, spoken, write

    chosen = pipeline.plan(recipe)
    for file_kind, (name, _) in zip(chosen.kinds, recipe.weighted_sources, strict=True):
        say(f"rows: {name}, recognised as {file_kind}")
    if arguments.dry_run:
        say(recipe_text(recipe))
        return
    folder = pipeline.open_folder(chosen, arguments.overwrite)
    if folder is None:
        say(f"{recipe.output_dir} holds this very preparation, whole: it is reused. To prepare anew: --overwrite")
        say(f"next: accelerate launch scripts/sft.py RECIPE data.train={recipe.output_dir}/train.jsonl")
        return
    work = pipeline.make_parts(chosen, folder, arguments.processes)
    rows = decide.Rows(work, decide.fields_of(recipe, chosen.kinds))
    decision = decide.decide(recipe, rows)
    splits = write.write_splits(rows, decision, folder)
    summary = gather.summarise(chosen, rows, decision, splits)
    summary.suspicious += odd.by_loss(recipe.report, rows, decision)
    write.write_all(chosen, summary, rows, decision, folder)
    for line in spoken.lines(summary):
        say(line)


def wanted(arguments: argparse.Namespace) -> Preparation:
    """The recipe of a file, or one made of the command line's sources, with its options laid over it."""
    overrides = [word for word in arguments.words if "=" in word and not Path(word).exists()]
    sources = [word for word in arguments.words if word not in overrides]
    if arguments.processes < 1:
        raise RecipeError(f"command line: --processes is `{arguments.processes}`; expected at least 1.")
    is_recipe = len(sources) == 1 and sources[0].endswith((".yaml", ".yml"))
    if not sources:
        raise RecipeError("command line: no recipe and no sources. Give one of recipes/prepare/, or files of rows.")
    arguments.recipe = Path(sources[0]) if is_recipe else None
    values: dict[str, Any] = {} if is_recipe else {"sources": sources}
    if arguments.out is not None:
        values["output_dir"] = arguments.out
    elif not is_recipe:
        raise RecipeError("command line: no output folder. Give one with --out, such as --out data/support.")
    overrides += [f"read.to={arguments.to}"] if arguments.to else []
    overrides += ["read.strict=true"] if arguments.strict else []
    return load_preparation(arguments.recipe, values, overrides)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="RECIPE | SOURCE ... | section.key=value", help="see above")
    parser.add_argument("--out", metavar="FOLDER", help="output_dir: where it is written")
    parser.add_argument("--to", metavar="FORMAT", help="read.to: the shape that is written")
    parser.add_argument("--strict", action="store_true", help="read.strict: a broken row ends it")
    parser.add_argument("--dry-run", action="store_true", help="check, print the resolved recipe, write nothing")
    parser.add_argument("--overwrite", action="store_true", help="replace a preparation with other settings")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one a core")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    run_script(main)
