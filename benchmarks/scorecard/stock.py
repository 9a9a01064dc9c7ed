"""The same faults on stock trl: its SFTTrainer with resume_from_checkpoint, on the same model and rows, nothing added."""

import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scorecard.crashes import faults
from scorecard.events import Events
from scorecard.trial import ROOT, STEPS, counted, digest, each, place, run


def train() -> None:
    """A plain trl script: the same command goes on from the newest checkpoint where there is one."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers.trainer_utils import get_last_checkpoint
    from trl import SFTConfig, SFTTrainer

    output = next(word.partition("=")[2] for word in sys.argv[1:] if word.startswith("output_dir="))
    rows = load_dataset("json", data_files=str(ROOT / "quickstart/data/heldout.jsonl"), split="train")
    config = SFTConfig(
        output_dir=output, max_steps=STEPS, save_steps=2, logging_steps=1, per_device_train_batch_size=4, use_cpu=True,
        bf16=False, report_to="none", seed=42, disable_tqdm=True, model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(str(ROOT / "quickstart/base"), args=config, train_dataset=rows, peft_config=lora)
    last = get_last_checkpoint(output) if Path(output).is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(output)


STOCK = SimpleNamespace(main=train)


def _whole() -> tuple[int, str]:
    with place() as folder:
        counter = folder.parent / "count"
        ended = run(STOCK, [f"output_dir={folder}"], Events(folder, -1, "before", counter).install)
        assert ended.code == 0, ended.text
        return int(counter.read_text()), digest(folder)


def r1_stock(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Kills at file events of stock trl, then the same command again: the same adapter?"""
    total, expected = _whole()
    points = [(at, mode) for at in range(total) for mode in ("before", "torn")]
    points = random.Random(seed).sample(points, min(sample or 30, len(points)))

    def trial(point: tuple[int, str]) -> str:
        with place() as folder:
            words = [f"output_dir={folder}"]
            run(STOCK, words, Events(folder, *point).install)
            again = run(STOCK, words)
            return (
                "" if again.code == 0 and digest(folder) == expected else f"{point}: {again.code} {again.text[-150:]}"
            )

    found = counted("survived", points, each(points, trial), file_events=total)
    return found | {"failures": [], "broken": found["failures"]}


def r2_stock(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Faults in the newest of two checkpoints of stock trl, then the same command again: the same adapter?"""
    _, expected = _whole()
    names = [name for name in faults() if not name.startswith("manifest")]
    with place() as master:
        ended = run(STOCK, [f"output_dir={master}"])
        assert ended.code == 0, ended.text
        for name in ("adapter_model.safetensors", "checkpoint-8"):  # as if it had been killed behind step 6
            path = master / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

        def trial(name: str) -> str:
            with place() as folder:
                shutil.copytree(master, folder)
                faults()[name](folder / "checkpoint-6")
                again = run(STOCK, [f"output_dir={folder}"])
                good = again.code == 0 and digest(folder) == expected
                return "" if good else f"{name}: {again.code} {again.text[-150:]}"

        found = counted("recovered", names, each(names, trial))
    return found | {"failures": [], "broken": found["failures"]}
