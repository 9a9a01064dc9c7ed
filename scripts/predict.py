"""Let a model answer rows: labels with probabilities, entities, answers in contexts, translations, or text.

    python scripts/predict.py ADAPTER_OR_MODEL ROWS [--output FILE] [--batch N]

Writes a line of JSON for each row, in the rows' order. An interrupted call goes on when it is given again.
"""

import argparse
import os
from pathlib import Path

from lorasmith.console import say
from lorasmith.errors import RunError
from lorasmith.runs.arguments import positive
from lorasmith.runs.ending import quiet, run_script
from lorasmith.started import quick_imports


def main() -> None:
    arguments = parse_arguments()
    quiet(arguments.offline)
    with quick_imports():
        from lorasmith.runs import predicting
        from lorasmith.runs.opening import open_any
        from lorasmith.runs.results import ResultFile, fingerprint
        from lorasmith.runs.scoring import output_of

    out = output_of(arguments.rows, arguments.output, "answers")
    if out.exists() and not arguments.overwrite:
        raise RunError(f"--output {out} is there. Give another file, or --overwrite.")
    method = predicting.method_of(arguments.model)
    read, predict = predicting.WAYS[method]
    opened = open_any(arguments.model, arguments.base, arguments.quantization, arguments.trust_remote_code)
    rows = read(opened, arguments.rows)
    key = fingerprint(predicting.identity(opened, arguments.model), [row.digest for row in rows])
    part = out.with_name(f"{out.name}.{key}.part")
    with ResultFile(part) as results:
        names = [str(number) for number in range(len(rows))]
        missing = [int(name) for name in results.lacking(names, predicting.PLACE)]
        if len(missing) < len(rows):
            say(f"rows: {len(rows) - len(missing)} were answered before")
        for index, found in predict(opened, [rows[one] for one in missing], arguments.batch):
            row = missing[index]
            results.add(str(row), {predicting.PLACE: rows[row].place} | found)
        answers = results.of(names)
    predicting.write(part, answers)
    os.replace(part, out)
    for line in predicting.lines(method, answers):
        say(line)
    say(f"answers: {out}")
    say(f"next: python scripts/eval.py {arguments.model} --data {arguments.rows}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of an adapter or a model, or a model's hub id")
    parser.add_argument("rows", help="a file, folder or hub id")
    parser.add_argument("--output", type=Path, help="where the answers go; default: ROWS with .answers.jsonl")
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="rows answered at a time, at most")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--quantization", choices=("none", "int8", "nf4", "fp4"), help="default: as it was trained")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
