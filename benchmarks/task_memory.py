"""The plan's memory against what is measured, of classifiers, taggers, answer finders and encoder-decoders on a CPU.

    python benchmarks/task_memory.py [--only TEXT]     # writes benchmarks/task_memory.json

Every cell makes a small model of random weights, attaches an adapter to all linear layers, trains the head whole, and
makes two updates with transformers' own trainer on padded rows. What torch's allocator hands out is added up from the
profiler's events, over what the model holds.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_grid import held_bytes, machine_line, measured_peak, summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/task_memory.json"
BERT = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024,
        "vocab_size": 4096, "max_position_embeddings": 1026}  # fmt: skip
T5 = {
    "d_model": 256,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 4,
    "num_heads": 4,
    "vocab_size": 8192,
    "decoder_start_token_id": 0,
}
BART = {"d_model": 256, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "vocab_size": 8192,
        "max_position_embeddings": 1024}  # fmt: skip
DEBERTA = {"relative_attention": True, "position_buckets": 128, "norm_rel_ebd": "layer_norm", "share_att_key": True,
           "pos_att_type": "p2c|c2p", "type_vocab_size": 0, "position_biased_input": False}  # fmt: skip
SMALL = {
    "bert": BERT,
    "roberta": BERT,
    "xlm-roberta": BERT,
    "electra": BERT | {"embedding_size": 128},
    "distilbert": {"dim": 256, "n_layers": 4, "n_heads": 4, "hidden_dim": 1024, "vocab_size": 4096},
    "deberta-v2": BERT | DEBERTA,
    "modernbert": BERT | {"intermediate_size": 512},
    "t5": T5,
    "mt5": T5,
    "umt5": T5,
    "bart": BART,
    "mbart": BART,
    "marian": BART | {"decoder_start_token_id": 0},
    "gpt2": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 4096},
    "llama": BERT | {"num_key_value_heads": 2, "intermediate_size": 704},
    "qwen2": BERT | {"num_key_value_heads": 2, "intermediate_size": 704},
}
TASKS = {"text": "text_classification", "token": "token_classification", "question": "question_answering"}


@dataclass(frozen=True)
class Cell:
    """One training."""

    model: str
    task: str = "text_classification"
    quantization: str = "none"
    length: int = 256
    target: int = 64
    micro_batch: int = 8
    accumulation: int = 1
    checkpointing: bool = False
    rank: int = 16
    padded: bool = True
    fused: bool = False
    dropout: bool = True  # of the config
    evaluate: int = 0  # tokens of the evaluation rows
    options: str = ""  # of the config besides, as JSON

    @property
    def label(self) -> str:
        """What differs from a plain cell, in short."""
        size = f"{self.micro_batch} x {self.length}" + (f" to {self.target}" if self.task == "seq2seq" else "")
        parts = [self.model, self.task.replace("_", " "), self.quantization, size]
        parts += ["checkpointing"] * self.checkpointing + ["fused"] * self.fused
        parts += ["alike"] * (not self.padded) + ["no dropout"] * (not self.dropout)
        parts += [self.options] * bool(self.options) + [f"evaluated on {self.evaluate}"] * bool(self.evaluate)
        return ", ".join(parts + [f"accumulate {self.accumulation}"] * (self.accumulation > 1))


def cells() -> list[Cell]:
    """Every architecture with each of its tasks, in each quantization, and what only some of them have."""
    encoders = ("bert", "roberta", "xlm-roberta", "electra", "distilbert", "deberta-v2", "modernbert")
    writers = ("t5", "mt5", "umt5", "bart", "mbart", "marian")
    found = [Cell(model, task) for model in (*encoders, "gpt2", "llama", "qwen2") for task in TASKS.values()]
    for model in ("bert", "electra", "distilbert", "deberta-v2", "modernbert", "gpt2", "llama"):
        tagger = Cell(model, "token_classification", length=128)
        found += [replace(tagger, quantization=kind) for kind in ("nf4", "int8")]
        found += [replace(tagger, checkpointing=True), replace(tagger, length=512, micro_batch=2, padded=False)]
        found += [replace(tagger, dropout=False), replace(tagger, fused=True), replace(tagger, accumulation=2)]
        found += [replace(tagger, length=64, evaluate=512), replace(tagger, quantization="int8", checkpointing=True)]
    for model in writers:
        found += [Cell(model, "seq2seq", kind, micro_batch=4) for kind in ("none", "nf4", "int8")]
    for model in ("t5", "bart"):
        writer = Cell(model, "seq2seq")
        found += [replace(writer, checkpointing=True), replace(writer, quantization="int8", checkpointing=True)]
        found += [replace(writer, length=512, target=128, micro_batch=4)]
        found += [replace(writer, length=128, target=256), replace(writer, dropout=False), replace(writer, fused=True)]
        found += [replace(writer, length=64, target=32, evaluate=512)]
    return [*found, Cell("t5", "seq2seq", options='{"feed_forward_proj": "gated-gelu"}')]


def config_of(cell: Cell) -> dict[str, Any]:
    """A config.json."""
    found = {"model_type": cell.model} | SMALL[cell.model]
    found |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if not cell.dropout:
        names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "dropout_rate",
                 "attn_pdrop", "resid_pdrop", "embd_pdrop")  # fmt: skip
        found |= dict.fromkeys(names, 0.0)
    return found | (json.loads(cell.options) if cell.options else {})


def model_of(cell: Cell, folder: Path, attention: str) -> Any:
    """A model of random weights with its adapter, saved and loaded as a run loads it, its head trained whole."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from lorasmith import models

    heads = ["classifier", "score", "qa_outputs", "pooler", "pre_classifier", "head"]
    names = {"text_classification": "SequenceClassification", "token_classification": "TokenClassification",
             "question_answering": "QuestionAnswering", "seq2seq": "Seq2SeqLM"}  # fmt: skip
    auto = getattr(transformers, f"AutoModelFor{names[cell.task]}")
    torch.manual_seed(0)
    values = config_of(cell)
    auto.from_config(transformers.AutoConfig.for_model(**values), dtype=torch.float32).save_pretrained(folder)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention}
    settings = models.quantization_config(cell.quantization, torch.float32)
    if settings is not None:
        named = [rf"(.*\.)?{head}" for head in heads]  # as transformers reads module names
        settings.llm_int8_skip_modules = None if cell.task == "seq2seq" else named
        options["quantization_config"] = settings
    model = auto.from_pretrained(folder, **options)
    if cell.quantization == "nf4":
        models.keep_4bit_layers_unpacked(model)
    kept = [name for name, _ in model.named_children() if name in heads]
    if cell.task == "text_classification" and cell.model == "bert":
        kept.append("pooler")
    excluded = rf"(.*\.)?({'|'.join(kept)})(\..*)?" if kept else None
    lora = LoraConfig(r=cell.rank, target_modules="all-linear", modules_to_save=kept or None, exclude_modules=excluded)
    adapted = get_peft_model(model, lora)
    if cell.fused:
        from lorasmith.speed.lora import fuse_lora
        from lorasmith.speed.mlp import fuse_mlps
        from lorasmith.speed.norms import fuse_norms

        for fuse in (fuse_lora, fuse_mlps, fuse_norms):
            fuse(adapted)
    return adapted


def rows_of(cell: Cell, length: int, count: int) -> list[dict[str, Any]]:
    """Rows of token ids, one of each batch as long as is said and, where they are padded, the others half of it."""
    import numpy as np

    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        short = cell.padded and i % cell.micro_batch > 0
        row: dict[str, Any] = {"input_ids": random.integers(3, 900, length // (1 + short)).tolist()}
        if cell.task == "text_classification":
            row["labels"] = i % 2
        elif cell.task == "token_classification":
            row["labels"] = [1] * len(row["input_ids"])
        elif cell.task == "question_answering":
            row |= {"start_positions": 3, "end_positions": 5}
        else:
            row["labels"] = random.integers(3, 900, cell.target // (1 + short)).tolist()
        rows.append(row)
    return rows


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rows filled up to the longest, and a mask of what is not filling."""
    import torch

    def filled(lists: list[list[int]], value: int) -> Any:
        longest = max(map(len, lists))
        return torch.tensor([one + [value] * (longest - len(one)) for one in lists])

    ids = [row["input_ids"] for row in rows]
    batch = {"input_ids": filled(ids, 0), "attention_mask": filled([[1] * len(one) for one in ids], 0)}
    for name in ("labels", "start_positions", "end_positions"):
        if name in rows[0]:
            found = [row[name] for row in rows]
            batch[name] = filled(found, -100) if isinstance(found[0], list) else torch.tensor(found)
    return batch


def plan_of(cell: Cell) -> Any:
    """The plan's setting and memory of a cell."""
    from lorasmith.memory.methods import METHODS
    from lorasmith.memory.peak import plan_memory
    from lorasmith.memory.setting import Rows, setting_of
    from lorasmith.memory.shapes import read_shape
    from lorasmith.recipe import Recipe

    values = {
        "model": {"name": "made up", "quantization": cell.quantization, "dtype": "float32"},
        "adapter": {"rank": cell.rank},
        "data": {"train": "made up"},
        "run": {"effective_batch": cell.micro_batch * cell.accumulation, "micro_batch": cell.micro_batch,
                "gradient_checkpointing": cell.checkpointing},
        "speed": {"fused_lora": cell.fused},
        "output_dir": "made up",
    }  # fmt: skip
    rows = rows_of(cell, cell.length, 2 * cell.micro_batch * cell.accumulation)
    lengths = [len(row["input_ids"]) for row in rows]
    written: dict[str, Any] = {}
    if cell.task == "seq2seq":
        written = {"target": cell.target, "eval_target": cell.target * bool(cell.evaluate)}
    shape = read_shape(config_of(cell))
    found = Rows(lengths, len(rows), cell.length, 0, cell.evaluate, "made up", **written)
    setting, _ = setting_of(Recipe.model_validate(values), shape, found, "cpu", by=METHODS[cell.task])
    return setting, plan_memory(shape, setting)


def measure(cell: Cell) -> dict[str, Any]:
    """Train two updates of a cell; GiB of live tensors, predicted and measured."""
    from transformers import Trainer, TrainingArguments

    from lorasmith.memory.weights import GIB

    gc.collect()
    setting, planned = plan_of(cell)
    with tempfile.TemporaryDirectory() as name:
        model = model_of(cell, Path(name) / "model", setting.attention)
        arguments = TrainingArguments(
            output_dir=f"{name}/out",
            per_device_train_batch_size=cell.micro_batch,
            per_device_eval_batch_size=cell.micro_batch,
            eval_strategy="epoch" if cell.evaluate else "no",
            prediction_loss_only=True,
            gradient_accumulation_steps=cell.accumulation,
            gradient_checkpointing=cell.checkpointing,
            max_steps=2,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        )
        sets = {"train_dataset": rows_of(cell, cell.length, 2 * cell.micro_batch * cell.accumulation)}
        sets |= {"eval_dataset": rows_of(cell, cell.evaluate, cell.micro_batch)} if cell.evaluate else {}
        trainer = Trainer(model=model, args=arguments, data_collator=collate, **sets)
        held = held_bytes(model)
        measured = measured_peak(model, trainer, "cpu")["tensors"]
    loaded = planned.at("loaded")
    return {
        **asdict(cell),
        "label": cell.label,
        "predicted_gib": round(planned.tensors / GIB, 4),
        "measured_gib": round(measured / GIB, 4),
        "error": round(planned.tensors / measured - 1, 4),
        "error_of_weights": round(loaded / held - 1, 4),
        "moment": planned.moment,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only cells whose label contains this; nothing is written")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    from lorasmith.runs.ending import quiet

    quiet()
    wanted = [cell for cell in cells() if arguments.only in cell.label]
    done, failed, start = [], [], time.perf_counter()
    for i, cell in enumerate(wanted):
        try:
            done.append(measure(cell))
            one = done[-1]
            shown = f"{one['predicted_gib']:.3f} predicted, {one['measured_gib']:.3f} measured, {one['error']:+.1%}"
            shown += f" ({one['moment']}; weights {one['error_of_weights']:+.1%})"
        except Exception as error:  # one cell must not cost the others
            failed.append(
                {"label": cell.label, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
            )
            shown = failed[-1]["error"]
        print(f"{i + 1}/{len(wanted)} {cell.label}: {shown}", flush=True)
    report = {"machine": machine_line("cpu"), "summary": summary(done), "failed": failed, "cells": done}
    print(json.dumps(report["summary"]), f"{time.perf_counter() - start:.0f} s")
    if not arguments.only:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
