"""What the contenders of speed.py are given, and what is measured about it; each call is a process of its own.

    python benchmarks/speed_inputs.py make FOLDER SHAPE ROWS_FOLDER UPDATES    # model, tokenizer, rows
    python benchmarks/speed_inputs.py ids TOOL FOLDER                          # which ids a tool trains on
    python benchmarks/speed_inputs.py rates                                    # this machine's matmul rates
    python benchmarks/speed_inputs.py scores FOLDER ADAPTER...                 # held-out loss of each adapter

The last line printed is JSON. `ids llamafactory` runs under LLaMA-Factory's own Python, so nothing is imported on top.
"""

import hashlib
import json
import random
import sys
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
EOS, PAD = "<|endoftext|>", "<|pad|>"
LONGEST = 1024  # tokens of a row; trl's default max_length, so nobody cuts anything
HELD_OUT = 8  # rows that no contender trains on
PROBED = 2  # updates of a probe: one to warm up, one to time
# Configs of random models; updates and rows an update fit a comparison into minutes on two cores.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {
        "says": "the shape of Qwen2.5-0.5B, vocabulary 151,936", "updates": 4, "batch": 8, "micro": 4,
        "config": {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                   "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                   "max_position_embeddings": 32_768, "tie_word_embeddings": True},
    },
    "100M": {
        "says": "a Llama of 100M parameters, vocabulary 16,384", "updates": 8, "batch": 16, "micro": 4,
        "config": {"model_type": "llama", "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
                   "num_attention_heads": 12, "num_key_value_heads": 12, "vocab_size": 16_384,
                   "max_position_embeddings": 2048, "tie_word_embeddings": True},
    },
    "tiny": {  # says nothing about speed: it is there to try the program
        "says": "a toy", "updates": 3, "batch": 4, "micro": 2,
        "config": {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 17_000,
                   "max_position_embeddings": 2048, "tie_word_embeddings": True},
    },
}  # fmt: skip


def make(folder: Path, shape: str, rows_folder: Path, updates: int) -> dict[str, Any]:
    """Write model/, rows/<full|probe>/train.jsonl, heldout.jsonl and LLaMA-Factory's twin of the rows into a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    batch = SHAPES[shape]["batch"]
    rows, source = read_rows(rows_folder)
    tokenizer = make_tokenizer(rows)
    tokenizer.save_pretrained(folder / "model")

    def length(row: dict[str, str]) -> int:
        return len(tokenizer(row["prompt"])["input_ids"]) + len(tokenizer(row["completion"])["input_ids"]) + 1

    fitting = (row for row in rows if length(row) <= LONGEST)
    held_out = [next(fitting) for _ in range(HELD_OUT)]
    full = [next(fitting) for _ in range(updates * batch)]
    registered = {}
    for name, some in (("full", full), ("probe", full[: PROBED * batch])):
        write_jsonl(folder / "rows" / name / "train.jsonl", some)
        # LLaMA-Factory's `empty` template ends no answer, so its rows carry the end in their text: the ids are equal.
        write_jsonl(folder / f"lf/{name}.jsonl", [row | {"completion": row["completion"] + EOS} for row in some])
        registered[name] = {"file_name": f"{name}.jsonl", "columns": {"prompt": "prompt", "response": "completion"}}
    (folder / "lf/dataset_info.json").write_text(json.dumps(registered))
    write_jsonl(folder / "heldout.jsonl", held_out)
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(**SHAPES[shape]["config"], **ids)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # on the disk as published models are
    model.save_pretrained(folder / "model")
    as_float32(folder / "model", folder / "model-float32")
    return {"rows": source, "parameters": model.num_parameters()}


def as_float32(model: Path, twin: Path) -> None:
    """The same files under a config that says float32: the only way to tell LLaMA-Factory to train in it."""
    twin.mkdir()
    for path in model.iterdir():
        (twin / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text())
    (twin / "config.json").unlink()
    (twin / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))


def read_rows(folder: Path) -> tuple[list[dict[str, str]], str]:
    """Prompts and completions in a fixed random order: alpaca's and gsm8k's in equal parts, else made-up ones.

    A prompt ends with one line break behind a word, where every tokenizer here cuts, so that a tool that tokenizes
    prompt and completion apart gets the ids of one that tokenizes them together.
    """
    alpaca, gsm8k = (folder / name for name in ("sft_alpaca_en.jsonl", "math_gsm8k_train.jsonl"))
    rng = random.Random(0)
    if not (alpaca.exists() and gsm8k.exists()):
        return [made_up(rng) for _ in range(2000)], "made up, lognormal lengths"
    asked = [(row["instruction"], row["input"], row["output"]) for row in read_jsonl(alpaca)]
    solved = [(row["question"], "", row["answer"]) for row in read_jsonl(gsm8k)]
    rng.shuffle(asked)
    rng.shuffle(solved)
    pairs = chain.from_iterable(zip(asked, solved, strict=False))
    return [one for pair in pairs if (one := as_row(*pair))["completion"]], "alpaca and gsm8k, equal parts"


def as_row(instruction: str, extra: str, answer: str) -> dict[str, str]:
    asked = "\n\n".join(part.strip() for part in (instruction, extra) if part.strip())
    return {"prompt": f"### Instruction:\n{asked}\n\n### Response:\n", "completion": answer.strip()}


def made_up(rng: random.Random) -> dict[str, str]:
    words = (ROOT / "quickstart/text.py").read_text().split()
    asked, answered = (max(4, min(400, int(rng.lognormvariate(4.2, 0.7)))) for _ in range(2))
    return as_row(" ".join(rng.choices(words, k=asked)), "", " ".join(rng.choices(words, k=answered)))


def make_tokenizer(rows: list[dict[str, str]]) -> Any:
    """A byte-level BPE of 16k tokens trained on the rows. Models have more embeddings than it has tokens, as Qwen's.

    It cuts as Qwen2Tokenizer does, which some versions of transformers put in the place of any tokenizer of a Qwen2.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    tokenizer, qwen = Tokenizer(models.BPE()), Qwen2Tokenizer().backend_tokenizer
    tokenizer.normalizer, tokenizer.pre_tokenizer = qwen.normalizer, qwen.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=16_384, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((row["prompt"] + row["completion"] for row in rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def ids(tool: str, folder: Path) -> dict[str, Any]:
    """A digest of the ids and labels that a tool trains on, with their counts and lengths."""
    find = {"lorasmith": our_ids, "trl": trl_ids, "llamafactory": llamafactory_ids}[tool]
    rows = sorted((list(map(int, row)), list(map(int, labels))) for row, labels in find(folder))
    lengths = [len(row) for row, _ in rows]
    supervised = sum(label != -100 for _, labels in rows for label in labels)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    seen = sum(length**2 for length in lengths) / sum(lengths)
    return {
        "digest": digest, "rows": len(rows), "tokens": sum(lengths), "supervised": supervised, "longest": max(lengths),
        "mean_document": round(seen, 1),
    }  # fmt: skip


def our_ids(folder: Path) -> list[tuple[Any, Any]]:
    from transformers import AutoTokenizer

    from lorasmith.data.prepare import prepare, read_train_and_eval
    from lorasmith.recipe import Data

    section = Data(train=str(folder / "rows/full/train.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    return [
        (row.input_ids, row.labels)
        for row in prepare(section, tokenizer, *read_train_and_eval(section, 0), LONGEST).train
    ]


def trl_ids(folder: Path) -> list[tuple[Any, Any]]:
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=1024, **sizes))
    config = SFTConfig(str(folder / "out"), use_cpu=True, bf16=False, report_to="none", gradient_checkpointing=False)
    dataset = load_dataset("json", data_files=str(folder / "rows/full/train.jsonl"), split="train")
    rows = SFTTrainer(model, config, train_dataset=dataset, processing_class=tokenizer).train_dataset
    return list(zip(rows["input_ids"], rows["labels"], strict=True))


def llamafactory_ids(folder: Path) -> list[tuple[Any, Any]]:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, data, training, _, _ = get_train_args(llamafactory_settings(folder, "full", {}))
    module = load_tokenizer(model)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data)
    rows = get_dataset(template, model, data, training, stage="sft", **module)["train_dataset"]
    return list(zip(rows["input_ids"], rows["labels"], strict=True))


def llamafactory_settings(folder: Path, rows: str, settings: dict[str, Any]) -> dict[str, Any]:
    """LLaMA-Factory's YAML, as a mapping."""
    model = "model-float32" if settings.get("dtype") == "float32" else "model"
    own = {key: value for key, value in settings.items() if key != "dtype"}
    return {
        "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all", "lora_rank": 16,
        "lora_alpha": 32, "lora_dropout": 0.0, "model_name_or_path": f"{folder}/{model}", "dataset_dir": f"{folder}/lf",
        "dataset": rows, "template": "empty", "cutoff_len": LONGEST, "output_dir": f"{folder}/out", "use_cpu": True,
        "overwrite_cache": True, "learning_rate": 2e-4, "lr_scheduler_type": "constant", "num_train_epochs": 1,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "include_num_input_tokens_seen": "non_padding",
    } | own  # fmt: skip


def rates() -> dict[str, float]:
    """FLOP/s of matrix products by dtype, on every thread."""
    from lorasmith.hardware import matmul_rates

    return matmul_rates("cpu")


def scores(folder: Path, adapters: list[Path]) -> dict[str, float]:
    """Mean loss of the held-out completions, in float32: of the base, and of each adapter as plain peft loads it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = list(read_jsonl(folder / "heldout.jsonl"))

    @torch.no_grad()
    def loss(model: Any) -> float:
        total = count = 0.0
        for row in rows:
            prompt, completion = (tokenizer(row[key])["input_ids"] for key in ("prompt", "completion"))
            trained = [*completion, tokenizer.eos_token_id]
            hidden = model.get_base_model().model if isinstance(model, PeftModel) else model.model
            states = hidden(torch.tensor([[*prompt, *trained]])).last_hidden_state[0, len(prompt) - 1 : -1]
            logits = model.get_output_embeddings()(states)
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(trained), reduction="sum"))
            count += len(trained)
        return total / count

    found = {}
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    found["base"] = loss(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(base, adapter).eval()
        found[adapter.name] = loss(model)
        base = model.unload()
    return found


def flops_per_token(config: dict[str, Any], supervised_share: float, mean_document: float, rank: int = 16) -> float:
    """True operations of a LoRA update on one token without padding; nothing recomputed, causal attention.

    Forward and backward of the frozen layers are 2 + 2 for each weight (no gradient of their own), those of the adapter
    2 + 4; the head runs for supervised positions only; attention is 2 + 4 for each of the mean T/2 positions seen, twice.

    Args:
        mean_document: Tokens of the row in which a mean token stands, the sum of squared lengths over that of lengths.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    keys = hidden // heads * key_heads
    linears = [(hidden, hidden)] * 2 + [(hidden, keys)] * 2 + [(hidden, inner)] * 3
    frozen = layers * sum(a * b for a, b in linears)
    adapter = layers * rank * sum(a + b for a, b in linears)
    head = supervised_share * config["vocab_size"] * hidden
    return 4 * frozen + 4 * head + 6 * adapter + 6 * mean_document * layers * hidden


def read_jsonl(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    what, *words = sys.argv[1:]
    if what == "make":
        found: Any = make(Path(words[0]), words[1], Path(words[2]), int(words[3]))
    elif what == "ids":
        found = ids(words[0], Path(words[1]))
    elif what == "rates":
        found = rates()
    else:
        found = scores(Path(words[0]), [Path(word) for word in words[1:]])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
