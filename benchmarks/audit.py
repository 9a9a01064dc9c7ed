"""How fast rows are read, checked, rendered, tokenized and masked, against trl's own preparation of the same rows.

    python benchmarks/audit.py [--rows 100000]        # writes benchmarks/audit.json; about 7 minutes

Both start from the same jsonl file of conversations and end with input ids and labels in memory; each runs in its own
process, so that peak memory is its own; imports are left out of the times. The cache is off on both sides.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = "quickstart/base"
OURS = "ours"
TRL = "trl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=(OURS, TRL), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(ours(arguments.file) if arguments.only == OURS else trls(arguments.file)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        write_rows(path, arguments.rows)
        runs: dict[str, list[dict[str, float]]] = {OURS: [], TRL: []}
        for _ in range(arguments.repeats):
            for name in runs:  # in turn, so that a slow spell hits both
                runs[name].append(measured(name, path))
                print(name, runs[name][-1], flush=True)
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in runs.items()}
    assert best[OURS]["tokens"] == best[TRL]["tokens"]
    assert best[OURS]["trained_tokens"] == best[TRL]["trained_tokens"]
    report = {
        "rows": arguments.rows,
        **best,
        "times_as_fast": round(best[TRL]["seconds"] / best[OURS]["seconds"], 2),
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "repeats": arguments.repeats,
    }
    (Path(__file__).parent / "audit.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


def write_rows(path: Path, count: int) -> None:
    """Conversations of one to three turns, with lengths spread like people's."""
    rng = random.Random(0)
    words = Path("quickstart/text.py").read_text().split()
    with path.open("w") as file:
        for _ in range(count):
            messages = []
            for _ in range(rng.randint(1, 3)):
                for role, mean in (("user", 3.0), ("assistant", 3.8)):
                    said = rng.choices(words, k=max(1, min(400, int(rng.lognormvariate(mean, 0.8)))))
                    messages.append({"role": role, "content": " ".join(said)})
            file.write(json.dumps({"messages": messages}) + "\n")


def measured(name: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--file", str(path)]
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:  # nothing is served from an earlier repeat's
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": cache, "LORASMITH_CACHE": cache}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def told(start: float, rows: int, tokens: int, trained: int) -> dict[str, float]:
    seconds = time.perf_counter() - start
    return {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "tokens": tokens,
        "trained_tokens": trained,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def ours(path: Path) -> dict[str, float]:
    """Reading, checking every row, both derivations of the mask, lengths and the account, as sft.py does it."""
    import trl.chat_template_utils  # noqa: F401
    from transformers import AutoTokenizer

    from lorasmith.data.prepare import prepare, read_train_and_eval
    from lorasmith.recipe import Data

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    section = Data(train=str(path))
    start = time.perf_counter()
    prepared = prepare(section, tokenizer, *read_train_and_eval(section, 0), None)
    account = prepared.accounts["train"]
    return told(start, account.trained, account.tokens, account.supervised_tokens)


def trls(path: Path) -> dict[str, float]:
    """load_dataset and SFTTrainer's own preparation, assistant turns only, over a model that costs nothing."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, **sizes))
    config = SFTConfig(
        str(path.parent / "out"), use_cpu=True, bf16=False, max_length=None, assistant_only_loss=True, report_to="none",
        gradient_checkpointing=False,
    )  # fmt: skip
    start = time.perf_counter()
    dataset = load_dataset("json", data_files=str(path), split="train")
    trainer = SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)
    prepared = trainer.train_dataset
    seconds_ended = time.perf_counter()
    ids, labels = prepared["input_ids"], prepared["labels"]
    tokens = sum(len(row) for row in ids)
    trained = sum(label != -100 for row in labels for label in row)
    return told(start + (time.perf_counter() - seconds_ended), len(prepared), tokens, trained)


if __name__ == "__main__":
    main()
