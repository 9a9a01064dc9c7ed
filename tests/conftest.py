"""What the tests share: scripts as real processes, the quickstart's base, small models of other shapes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# bfloat16 is slow then on every CPU, so that a run without a dtype computes in float32 whatever machine tests it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
BASE = "quickstart/base"
NO_EVAL = ["data.eval=null", "trainer.eval_strategy=no"]
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the real rows of ../shared are not here")


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name files relative to the clone's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def no_network() -> Iterator[None]:
    """For figures: whoever opens a connection past this machine fails."""
    connect = socket.socket.connect

    def at_home(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"a connection to {address}"
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", at_home)
        yield


# Files that take longest, which several processes begin with so that none works alone at the end.
LONGEST = (
    "test_reliability", "test_sft", "test_two_hosts", "test_text_classification", "test_token_classification",
    "test_question_answering", "test_seq2seq", "test_grpo", "test_preference", "test_dpo", "test_eval",
    "test_eval_parts", "test_merge",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the longest files first, else in their order."""
    place = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


def launch(*words: Any, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would and wait for it."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        input=stdin,
        text=True,
        capture_output=True,
        timeout=600,
    )


def stop_after(script: str, step: int, *words: Any) -> None:
    """Start a script, ask it to end once it has told of a step, and see it end as one that goes on later."""
    command = [sys.executable, f"scripts/{script}.py", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"step {step}/"):
                process.send_signal(signal.SIGTERM)
                break
        process.stdout.read()
        assert process.wait(400) == 75


def sft(*words: Any) -> Path:
    """Run sft.py in this process and give the run's folder."""
    return run_script("sft", *words)


def run_script(name: str, *words: Any) -> Path:
    """Run a script in this process, which saves its imports, and give the run's folder, if one was asked for."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    before, sys.argv = sys.argv, [f"scripts/{name}.py", *map(str, words)]
    try:
        script.main()
    finally:
        sys.argv = before
    return Path(next((str(word).partition("=")[2] for word in words if str(word).startswith("output_dir=")), "."))


def load_benchmark(name: str) -> Any:
    """A program of benchmarks/ as a module."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The log events of a run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    """The training losses of a run, in order."""
    return [event["loss"] for event in metrics(folder) if "loss" in event]


def write_rows(path: Path, *rows: Any) -> Path:
    """Rows as jsonl."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short nf4 run on the quickstart's rows: finished, with all its files; not good at its task."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = launch(
        "scripts/sft.py",
        "recipes/quickstart.yaml",
        f"output_dir={folder}",
        "trainer.max_steps=6",
        "trainer.logging_steps=2",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a random small model of a real architecture, with the quickstart's tokenizer, and give its folder."""

    def make(kind: str, **changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        name = "-".join([kind, *(f"{key}{value}" for key, value in changes.items())])
        folder = tmp_path_factory.getbasetemp() / f"small-{name}"
        if folder.exists():
            return folder
        sizes: dict[str, Any] = {"vocab_size": 1024, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": None}
        if kind == "gpt2":
            sizes |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
        else:
            sizes |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
            sizes |= {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | changes)))
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(ROOT / BASE / file, folder)
        return folder

    return make


ENCODER_WORDS = [
    "red",
    "orange",
    "blue",
    "green",
    "round",
    "square",
    "small",
    "large",
    "old",
    "new",
    "a",
    "the",
    "is",
    "was",
    "box",
    "cup",
    "lamp",
    "chair",
    "door",
    "and",
]


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a random small encoder of a real architecture, with a tokenizer of whole words, and give its folder."""

    def make(kind: str, **changes: Any) -> Path:
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

        name = "-".join([kind, *(f"{key}{value}" for key, value in changes.items())])
        folder = tmp_path_factory.getbasetemp() / f"small-{name}"
        if folder.exists():
            return folder
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        vocabulary = {word: index for index, word in enumerate([*special, *ENCODER_WORDS])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        inputs = ["input_ids", "token_type_ids", "attention_mask"]
        PreTrainedTokenizerFast(tokenizer_object=words, model_input_names=inputs, **names).save_pretrained(folder)
        sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "pad_token_id": 0, "max_position_embeddings": 128}
        if kind == "distilbert":
            sizes |= {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4}
        else:
            sizes |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        if kind == "modernbert":
            sizes |= {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        torch.manual_seed(0)
        model = AutoModel.from_config(AutoConfig.for_model(kind, **(sizes | changes)))
        model.save_pretrained(folder)
        return folder

    return make


def trained_texts(tokenizer: Any, row: Any) -> list[str]:
    """The decoded runs of trained tokens of one token row."""
    runs: list[str] = []
    current: list[int] = []
    for label in [*row.labels, -100]:
        if label != -100:
            current.append(label)
        elif current:
            runs.append(tokenizer.decode(current))
            current = []
    return runs
