"""sft.py as people run it: the run folder, reuse, refusal, the resolved recipe, and trl's own losses."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import BASE, NO_EVAL, ROOT, SHARED, launch, losses, metrics, needs_shared, sft, write_rows

from lorasmith.errors import LorasmithError

FILES = {
    "README.md", "adapter_config.json", "adapter_model.safetensors", "audit.html", "audit.json", "chat_template.jinja",
    "metrics.jsonl", "plots", "private", "recipe.yaml", "run.json", "status.json", "template_contract.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
QUICK = ["recipes/quickstart.yaml", "trainer.max_steps=4", "trainer.logging_steps=1", "model.dtype=float32"]


def test_a_run_leaves_exactly_the_files_of_the_design(trained):
    assert {path.name for path in trained.iterdir()} == FILES
    assert {path.name for path in (trained / "plots").iterdir()} == {"loss.png", "learning_rate.png", "memory.png"}
    assert {path.name for path in (trained / "private").iterdir()} == {"eval_rows.jsonl", "log.txt"}


def test_status_says_done_and_what_comes_next(trained):
    status = json.loads((trained / "status.json").read_text())
    assert (status["exit_code"], status["reason"], status["last_step"]) == (0, "done", 6)
    assert status["next_command"] == f"python scripts/chat.py {trained}"


def test_run_json_holds_the_provenance(trained):
    run = json.loads((trained / "run.json").read_text())
    assert run["base"]["name"] == BASE
    assert re.fullmatch("[0-9a-f]{64}", run["base"]["fingerprint"])
    assert re.fullmatch("[0-9a-f]{64}", run["data"]["fingerprint"])
    assert re.fullmatch("[0-9a-f]{64}", run["template_hash"])
    assert run["data"]["train_account"]["read"] == run["data"]["train_account"]["trained"] == 480
    assert run["versions"]["peft"]
    assert run["metrics"]["after"]["eval_loss"] < run["metrics"]["before"]["eval_loss"]
    assert run["memory"]["measured_gib"] > 0.1
    assert run["speed"]["tokens_per_second"] > 0
    lengths = run["data"]["train_account"]["length_quantiles"]
    assert 96 * lengths["min"] < run["speed"]["tokens"] < 96 * lengths["max"]  # 96 rows, padding left out


def test_the_pictures_are_pictures(trained):
    from PIL import Image

    for path in (trained / "plots").iterdir():
        assert Image.open(path).size == (840, 480)


def test_the_card_tells_a_stranger_how_to_use_the_adapter(trained):
    card = (trained / "README.md").read_text()
    assert card.startswith("---\nbase_model: quickstart/base\nlibrary_name: peft\n")
    assert "AutoPeftModelForCausalLM" in card
    assert "480 rows" in card
    assert "| 100 held out while training | loss |" in card
    assert "train.jsonl" in card
    assert str(ROOT) not in card


def test_the_code_on_the_card_runs(trained):
    code = (trained / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    code = code.replace(f'folder = "{trained.name}"', f'folder = "{trained}"')
    done = launch("-c", code)
    assert done.returncode == 0, done.stderr


def test_nothing_sensitive_reaches_the_run_folder(tmp_path, monkeypatch):
    secret = "hf_canary" + "0" * 25
    monkeypatch.setenv("HF_TOKEN", secret)
    folder = sft(*QUICK, f"output_dir={tmp_path / 'run'}", "trainer.save_steps=2", "run.keep_checkpoints=true")
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    assert not list(folder.rglob("training_args.bin"))
    shareable = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in shareable if secret.encode() in path.read_bytes()]


def test_a_finished_run_is_reused_and_never_overwritten(trained):
    before = (trained / "adapter_model.safetensors").stat().st_mtime_ns
    arguments = ["recipes/quickstart.yaml", f"output_dir={trained}", "trainer.max_steps=6", "trainer.logging_steps=2"]
    again = launch("scripts/sft.py", *arguments)
    assert again.returncode == 0
    assert f"{trained} holds this very run, finished: it is reused. To train anew: --overwrite" in again.stdout
    other = launch("scripts/sft.py", *arguments, "adapter.rank=8")
    assert other.returncode == 2
    assert other.stderr == (
        f"error: {trained} holds another finished run (its adapter.rank is 16, here 8). "
        "Choose another output_dir, or --overwrite.\n"
    )
    assert (trained / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    done = launch("scripts/sft.py", *QUICK, f"output_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not empty and holds no run. Choose another output_dir.\n"
    assert (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.scorecard(row="R19")
def test_the_resolved_recipe_reruns_the_run_to_the_same_adapter(tmp_path):
    first = sft(*QUICK, f"output_dir={tmp_path / 'first'}")
    second = sft(first / "recipe.yaml", f"output_dir={tmp_path / 'second'}")
    assert losses(first) == losses(second)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second)]
    assert weights[0] == weights[1]


def test_a_dry_run_checks_prints_and_writes_nothing(tmp_path):
    done = launch("scripts/sft.py", *QUICK, f"output_dir={tmp_path / 'run'}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "micro_batch: 16" in done.stdout
    assert "[{" in done.stdout
    assert not (tmp_path / "run").exists()


def test_accelerate_launches_it(tmp_path):
    done = launch("-m", "accelerate.commands.launch", "scripts/sft.py", *QUICK, f"output_dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["trainer.max_length=4096"], "trainer.max_length is `4096`; the model has 512 positions. Lower it."),
        (["trainer.max_length=20"], "quickstart/data/train.jsonl:1: 480 of 480 rows are over trainer.max_length (20 tokens; "
         "the longest has 63). Set trainer.max_length: 64, which holds 99 %, or data.on_too_long: drop or truncate."),
        (["data.train=quickstart/data/heldout.jsonl"], "quickstart/data/heldout.jsonl:1: the same row is trained on "
         "(quickstart/data/heldout.jsonl:1) (100 such rows). Remove it from one of the files."),
        (["model.name=./nowhere"], "model.name is `./nowhere`; no such folder. Give a local folder or a hub id."),
        (["adapter.target_modules=[q_proj,v_prj]"], "adapter.target_modules: `v_prj` matches no module. Did you mean `v_proj`?"),
        (["adapter.from=/nowhere"], "/nowhere: no adapter here (adapter_config.json is missing)."),
        (["data.train=nothing.jsonl"], "nothing.jsonl: no such file. Expected a path to rows, or a hub id such as org/name."),
        (["data.train=some/dataset"], "not on this machine, and the hub is out of reach: the rows of some/dataset: hf download"),
        (["trainer.report_to=wandb"], "trainer.report_to is `wandb`, which is not installed. Install it with: pip install wandb"),
        (["model.attention=flash_attention_2"], "quickstart/base: "),
        (["trainer.load_best_model_at_end=true", "trainer.eval_strategy=steps", "trainer.eval_steps=3",
          "trainer.save_strategy=steps", "trainer.save_steps=2"], "trainer: "),
    ],
)  # fmt: skip
def test_what_cannot_work_ends_in_one_line_and_exit_code_2(overrides, refusal, tmp_path):
    with pytest.raises(LorasmithError) as error:
        sft(*QUICK, f"output_dir={tmp_path / 'run'}", *overrides)
    assert error.value.exit_code == 2
    assert str(error.value).startswith(refusal)
    assert "\n" not in str(error.value)


def test_a_refusal_is_the_only_line_of_a_script(tmp_path):
    done = launch("scripts/sft.py", *QUICK, f"output_dir={tmp_path / 'run'}", "trainer.max_length=4096")
    assert done.returncode == 2
    assert done.stderr == "error: trainer.max_length is `4096`; the model has 512 positions. Lower it.\n"


def test_a_diverged_run_ends_with_exit_code_4_and_saves_no_adapter(tmp_path):
    folder = tmp_path / "run"
    done = launch("scripts/sft.py", *QUICK, f"output_dir={folder}", "trainer.learning_rate=1", "adapter.alpha=1e30",
                  *NO_EVAL)  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(
        r"error: step \d: .+ is not finite, for rows \S+jsonl:\d+, .* Lower trainer.learning_rate.*\n", done.stderr
    )
    assert not (folder / "adapter_model.safetensors").exists()
    assert json.loads((folder / "status.json").read_text())["exit_code"] == 4


def test_early_stopping_keeps_the_best_evaluation(tmp_path):
    folder = sft(
        "recipes/quickstart.yaml", f"output_dir={tmp_path / 'run'}", "run.early_stopping=1", "trainer.eval_strategy=steps",
        "trainer.eval_steps=2", "trainer.max_steps=30", "trainer.learning_rate=0.9", "model.quantization=none",
    )  # fmt: skip
    evaluations = [event for event in metrics(folder) if "eval_loss" in event]
    assert evaluations[-1]["eval_loss"] == min(event["eval_loss"] for event in evaluations[1:])
    assert max(event["step"] for event in metrics(folder)) < 30


def test_tensorboard_is_written_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tensorboard"))
    sft(*QUICK, f"output_dir={tmp_path / 'run'}", "trainer.report_to=tensorboard")
    assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))


def test_packing_trains(tmp_path):
    folder = sft(*QUICK, f"output_dir={tmp_path / 'run'}", "trainer.packing=true", *NO_EVAL, "run.effective_batch=4",
                 "run.micro_batch=2")  # fmt: skip
    assert losses(folder)[-1] < losses(folder)[0]


def trl_losses(tmp_path: Path, rows: Path, *extra: str) -> list[float]:
    """Twenty steps of trl's own script with the settings of the quickstart, in float32."""
    out = tmp_path / "trl"
    done = launch(
        Path(sys.modules["trl"].__file__).parent / "scripts/sft.py", "--model_name_or_path", BASE, "--dataset_name", rows,
        "--output_dir", out, "--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--use_peft", "--lora_r", "16",
        "--lora_alpha", "32", "--lora_dropout", "0.0", "--lora_target_modules", "all-linear", "--learning_rate", "2e-3",
        "--lr_scheduler_type", "cosine", "--warmup_steps", "10", "--per_device_train_batch_size", "8",
        "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "false", "--max_steps", "20", "--logging_steps",
        "1", "--max_length", "512", "--seed", "42", "--report_to", "none", *extra,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((out / "checkpoint-20/trainer_state.json").read_text())
    return [event["loss"] for event in state["log_history"] if "loss" in event]


@pytest.mark.scorecard(row="R8")
@pytest.mark.parametrize("shape", ["messages", pytest.param("prompt+completion", marks=pytest.mark.slow)])
def test_our_losses_are_trls_own_over_twenty_steps(shape, tmp_path):
    import trl  # noqa: F401

    rows = tmp_path / "rows"
    rows.mkdir()
    found = [json.loads(line) for line in (ROOT / "quickstart/data/train.jsonl").read_text().splitlines()]
    extra = ["--assistant_only_loss", "true"]
    if shape != "messages":
        found = [
            {"prompt": row["messages"][0]["content"], "completion": "\n" + row["messages"][1]["content"]}
            for row in found
        ]
        extra = []
    path = write_rows(rows / "train.jsonl", *found)
    ours = losses(
        sft(
            "recipes/quickstart.yaml", "model.quantization=none", "model.dtype=float32", "run.micro_batch=8",
            "trainer.max_steps=20", "trainer.logging_steps=1", f"data.train={path}", *NO_EVAL,
            f"output_dir={tmp_path / 'ours'}",
        )
    )  # fmt: skip
    theirs = trl_losses(tmp_path, rows, *extra)
    assert len(ours) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert ours[-1] < ours[0] - 1


@needs_shared
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("math_gsm8k_train", ["data.on_too_long=drop"]),
        ("sft_alpaca_en", ["data.on_too_long=truncate"]),
        pytest.param("tools_glaive_sharegpt", ["data.on_too_long=truncate"], marks=pytest.mark.slow),
        pytest.param("chat_v1_sft_demo", ["data.on_too_long=drop"], marks=pytest.mark.slow),
        pytest.param("text_c4_demo", ["data.on_too_long=truncate"], marks=pytest.mark.slow),
    ],
)
def test_real_rows_train_unedited_on_a_real_base(name, overrides, tmp_path):
    """30 steps on stories260K, which has no chat template, and the loss falls; only the command line differs."""
    folder = sft(
        "recipes/quickstart.yaml", f"model.name={SHARED}/models/stories260K-hf", "model.quantization=none",
        "model.dtype=float32", "model.chat_template=chatml", f"data.train={SHARED}/data/{name}.jsonl", *NO_EVAL, *overrides,
        "run.effective_batch=8", "run.micro_batch=4", "trainer.max_steps=30", "trainer.logging_steps=1",
        f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    found = losses(folder)
    assert len(found) == 30
    assert sum(found[-8:]) / 8 < sum(found[:8]) / 8 - 0.1
    account = json.loads((folder / "audit.json").read_text())["train"]
    assert account["read"] + account["unrolled"] == account["trained"] + sum(account["dropped"].values())


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [["model.quantization=none"], ["model.quantization=int8"],
                                       ["model.quantization=nf4"], ["adapter.method=dora"]], ids=lambda o: o[0])  # fmt: skip
def test_the_quickstart_reaches_its_score(overrides, tmp_path):
    folder = tmp_path / "run"
    done = launch("scripts/sft.py", "recipes/quickstart.yaml", *overrides, f"output_dir={folder}")
    assert done.returncode == 0, done.stderr
    done = launch("scripts/eval.py", folder, "--data", "quickstart/data/heldout.jsonl")
    assert done.returncode == 0, done.stderr
    score = json.loads((folder / "run.json").read_text())["evaluations"][0]["scores"]["exact_match"]
    assert score["base"] < 0.10
    assert score["adapter"] >= 0.90
    assert score["verdict"] == "better"
