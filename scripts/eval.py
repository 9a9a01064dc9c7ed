"""Evaluate an adapter against its base on rows, both from one model in memory, or a whole model.

    python scripts/eval.py ADAPTER_OR_MODEL --data rows.jsonl [--compare OTHER ...] [--limit N]

Every figure comes with a paired bootstrap interval and a verdict: better, worse, cannot tell. Results of rows are kept
as they come, so that the same command goes on where it was left; report.html shows them. Figures go into the adapter's
run.json and card.
"""

import argparse
from pathlib import Path

from lorasmith.console import complain, say
from lorasmith.errors import DivergedError
from lorasmith.evaluation.conditions import check_names, parse_condition, that_hold
from lorasmith.listening import listener
from lorasmith.runs.arguments import positive
from lorasmith.runs.ending import quiet, resumable, run_script
from lorasmith.started import quick_imports


def main() -> None:
    arguments = parse_arguments()
    conditions = [parse_condition(one) for one in arguments.fail_if]
    quiet(arguments.offline)
    listener.listen()
    with quick_imports():
        from lorasmith.data.prepare import source_name
        from lorasmith.runs import comparing
        from lorasmith.runs.contestants import BASE, check_prompts, contestants
        from lorasmith.runs.evaluation_page import write_page
        from lorasmith.runs.folder import now, read_json, write_json
        from lorasmith.runs.report import add_evaluation
        from lorasmith.runs.requesting import judge_of, wanted_of

    # What can be refused is refused before weights are read.
    judge = judge_of(arguments)
    wanted, folder = wanted_of(arguments)
    is_adapter = (Path(arguments.model) / "adapter_config.json").is_file()
    check_names(conditions, wanted.names + [comparing.PREFERENCE] * (judge is not None), is_adapter)
    if wanted.given is None:
        models = [arguments.model, *arguments.compare]
        check_prompts(models, wanted.rows[0], arguments.base, arguments.trust_remote_code)

    options = (arguments.base, arguments.quantization, arguments.trust_remote_code)
    with resumable(f"results so far are kept in {folder}"):
        contested = contestants(arguments.model, arguments.compare, *options)
        outcomes = [comparing.outcome_of(one, wanted, folder) for one in contested]
        first = comparing.main_of(outcomes)
        compared = [comparing.against(first, one, wanted) for one in outcomes if one is not first]
        if judge:
            comparing.judge_all(judge, compared, outcomes, wanted, folder)

    comparing.say_all(first, compared, outcomes, wanted)
    kept = {"data": source_name(arguments.data), "rows": comparing.rows_of(first, wanted), "time": now()}
    kept |= comparing.record(first, compared, outcomes, wanted)
    write_json(folder / "results.json", kept)
    say(f"page: {write_page(folder, kept, first, compared, outcomes, wanted)}")
    run = read_json(Path(arguments.model) / "run.json") if is_adapter else {}
    if run:
        add_evaluation(Path(arguments.model), run, kept)
        say(f"written: {arguments.model}/run.json and README.md")
    deltas = {name: found.delta for one in compared if one.other == BASE for name, found in one.differences.items()}
    held = that_hold(conditions, first.figures, deltas)
    for line in held[1:]:
        complain(f"--fail-if: {line}")
    if held:
        raise DivergedError(f"--fail-if: {held[0]}")
    say(f"next: python scripts/{'chat.py' if wanted.given is None else 'merge.py'} {arguments.model}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    parser.add_argument("model", metavar="ADAPTER_OR_MODEL", help="folder of an adapter or a model, or a hub id")
    parser.add_argument("--data", required=True, help="rows: file or hub id")
    parser.add_argument("--compare", nargs="+", default=[], metavar="OTHER", help="adapters or models to compare with")
    parser.add_argument("--subset", help="configuration of a hub data set")
    parser.add_argument("--split", default="train", help="split of a hub data set")
    parser.add_argument("--limit", type=positive, metavar="N", help="use the first N rows, and questions of tasks")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--quantization", choices=("none", "int8", "nf4", "fp4"), help="of the base, if not as trained")
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="longest answer; default: the longest expected one and 16"
    )
    parser.add_argument("--batch", type=positive, metavar="N", help="rows at a time; default: what there is room for")
    group = parser.add_argument_group("figures")
    group.add_argument(
        "--metrics",
        type=listed,
        default=[],
        metavar="A,B",
        help="exact_match, numeric_match, json_valid, json_equal, rouge, bleu, chrf; default: what the rows ask for",
    )
    group.add_argument("--regex", metavar="PATTERN", help="share of answers in which this is found")
    group.add_argument("--group", metavar="COLUMN", help="figures by group of rows, and the largest gap")
    group.add_argument(
        "--bias", metavar="FILE", help="pairs of sentences: CrowS-Pairs, WinoBias, sent_more and sent_less"
    )
    group.add_argument(
        "--no-forgetting", dest="forgetting", action="store_false", help="leave the loss on general texts out"
    )
    group.add_argument("--tasks", type=listed, default=[], metavar="A,B", help="tasks of lm-evaluation-harness")
    group.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own for --tasks")
    group.add_argument("--judge", metavar="URL", help="OpenAI-compatible address of a model that compares answers")
    group.add_argument("--judge-model", metavar="NAME", help="the model behind --judge")
    group.add_argument("--judge-prompt", metavar="FILE", help="a prompt with {question}, {first} and {second}")
    group.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="CONDITION",
        help='exit with 4 if it holds: "exact_match < 0.8", "delta:loss > 0"; may be repeated',
    )
    parser.add_argument("--output", metavar="DIR", help="folder of results; default: within the adapter's private/")
    return parser.parse_args()


def listed(text: str) -> list[str]:
    """Names with commas between them, for argparse."""
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    run_script(main)
