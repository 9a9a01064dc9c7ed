"""How fast eval.py answers rows, against transformers' own batched generate written plainly, in turn, in one process.

    python benchmarks/eval_speed.py [--rows 128] [--repeats 3] [--adapter FOLDER]     # about 10 minutes on two cores

Writes benchmarks/eval_speed.json. Needs the rows of ../shared.

- The rows are questions of GSM8K's test split, asked of the embedded default: quickstart/base with the quickstart's
  adapter, trained here unless --adapter names one, switched on, and its base with the adapter switched off.
- Both sides write a prompt by the chat template, answer greedily up to the same number of tokens, and decode; loading is
  left out. They take turns, each repeat in another order. The plain side has transformers' generate in batches in the
  order of the rows, in each of several sizes, of which the fastest counts; ours has eval.py's default.
- The CPU seconds of both sides are told beside the clock's, which another process on the machine may stretch.
- Rows count whose prompt and longest answer fit the model's 512 positions. The answers must be the same texts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/eval_speed.json"
PAGE = ROOT / "docs/evaluation.md"
MARKS = ("<!-- speed -->", "<!-- /speed -->")
ROWS = Path(os.environ.get("LORASMITH_SHARED", ROOT.parent / "shared")) / "data/math_gsm8k_test.jsonl"
SIZES = (16, 32, 64)  # rows at a time of the plain side
NEW_TOKENS = 160
FEWEST = 128  # rows of a result that is kept
POSITIONS = 512


def main() -> None:
    arguments = parse_arguments()
    os.chdir(ROOT)
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, threads: {os.environ.get('OMP_NUM_THREADS', os.cpu_count())}",
        "rows": arguments.rows,
        "new_tokens": NEW_TOKENS,
        "repeats": arguments.repeats,
        "cells": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for quantization in arguments.quantizations:
            adapter = arguments.adapter or train(Path(folder) / quantization, quantization)
            found["cells"] |= measure(str(adapter), quantization, arguments.rows, arguments.repeats)
            keep(found, arguments)
    print(table(found))


def keep(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the results so far, unless it was only a trial."""
    if arguments.rows >= FEWEST and not arguments.adapter:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), found))


def with_table(page: str, found: dict[str, Any]) -> str:
    """The page with the table between its marks."""
    head, _, rest = page.partition(MARKS[0])
    return f"{head}{MARKS[0]}\n{table(found)}\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"


def table(found: dict[str, Any]) -> str:
    """The results for people."""
    lines = [
        f"{found['rows']} questions of GSM8K, answers of up to {found['new_tokens']} tokens, {found['machine']}; medians of "
        f"{found['repeats']} (`python benchmarks/eval_speed.py`):\n",
        "| quickstart/base | rows/s | generate, its best batch | times as fast | by CPU time | same answers |",
        "|---|---|---|---|---|---|",
    ]
    for name, cell in found["cells"].items():
        plain = f"{cell['plain']:.1f} ({cell['plain_batch']} rows)"
        speeds = f"{cell['ours']:.1f} | {plain} | {cell['ratio']:.2f} | {cell['cpu_ratio']:.2f}"
        lines.append(f"| {name} | {speeds} | {cell['same']} of {found['rows']} |")
    return "\n".join(lines)


def train(folder: Path, quantization: str) -> Path:
    """The quickstart's adapter."""
    command = [
        "scripts/sft.py",
        "recipes/quickstart.yaml",
        f"output_dir={folder}",
        f"model.quantization={quantization}",
        "model.dtype=float32",  # in bfloat16 the rows of a batch decide near ties
    ]
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return folder


def measure(path: str, quantization: str, count: int, repeats: int) -> dict[str, Any]:
    """Rows/s of both sides, with the adapter on and off."""
    from lorasmith.data.formats import read_rows
    from lorasmith.data.render import answer_prompt
    from lorasmith.evaluation.answering import answers
    from lorasmith.runs.contestants import _quicken
    from lorasmith.runs.opening import open_model

    opened = open_model(path, None, None)
    model, tokenizer = opened.model, opened.tokenizer
    fits = (row for row in read_rows(str(ROWS)).rows if len(answer_prompt(tokenizer, row)) + NEW_TOKENS <= POSITIONS)
    rows = [row for row, _ in zip(fits, range(count), strict=False)]
    assert len(rows) == count

    def ours() -> list[str]:
        prompts = [answer_prompt(tokenizer, row) for row in rows]
        texts = dict(answers(model, tokenizer, prompts, NEW_TOKENS))
        return [texts[i] for i in range(count)]

    cells = {}
    for name in ("adapter", "base"):
        with nullcontext() if name == "adapter" else model.disable_adapter():
            # eval.py's own levers on its side alone, taken off again for the plain one.
            seconds, cpu, texts = alternate(
                ours, lambda size: plain(model, tokenizer, rows, size), model, _quicken, repeats
            )
        best = min(SIZES, key=lambda size: statistics.median(seconds[size]))
        mine, theirs = (statistics.median(seconds[key]) for key in ("ours", best))
        cells[f"{quantization}, {name}"] = {
            "ours": round(count / mine, 2),
            "plain": round(count / theirs, 2),
            "plain_batch": best,
            "ratio": round(theirs / mine, 2),
            "cpu_ratio": round(
                min(map(statistics.median, (cpu[n] for n in SIZES))) / statistics.median(cpu["ours"]), 2
            ),
            "plain_by_batch": {str(size): round(count / statistics.median(seconds[size]), 2) for size in SIZES},
            "same": sum(a == b for a, b in zip(texts["ours"], texts[best], strict=True)),
            "mean_answer_tokens": round(sum(len(tokenizer(text)["input_ids"]) for text in texts["ours"]) / count, 1),
        }
    return cells


def alternate(
    ours: Any, theirs: Any, model: Any, quicken: Any, repeats: int
) -> tuple[dict[Any, list[float]], dict[Any, list[float]], Any]:
    """Seconds and CPU seconds of each side by turn, and what each answered."""
    from lorasmith.runs.contestants import _unquicken

    seconds: dict[Any, list[float]] = {key: [] for key in ("ours", *SIZES)}
    cpu: dict[Any, list[float]] = {key: [] for key in seconds}
    texts = {}
    for number in range(repeats):
        turns = list(seconds)
        for key in turns if number % 2 == 0 else reversed(turns):
            quicken(model) if key == "ours" else _unquicken(model)
            start, computed = time.perf_counter(), time.process_time()
            texts[key] = ours() if key == "ours" else theirs(key)
            seconds[key].append(time.perf_counter() - start)
            cpu[key].append(time.process_time() - computed)
    return seconds, cpu, texts


def plain(model: Any, tokenizer: Any, rows: list[Any], size: int) -> list[str]:
    """Batches as transformers' documentation writes them."""
    import torch

    tokenizer.padding_side = "left"
    found = []
    for start in range(0, len(rows), size):
        conversations = [row.messages[: row.answer_start] for row in rows[start : start + size]]
        inputs = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        found += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FEWEST)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--adapter", help="a quickstart adapter that is there already")
    parser.add_argument("--quantizations", nargs="+", default=["nf4", "none"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
