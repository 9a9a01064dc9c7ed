"""What only a GPU shows. `make gpu-check` runs these; without a GPU they are skipped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
ROOT = Path(__file__).parent.parent.parent


def script(*command, **environment):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_quickstart_learns_its_task_on_a_gpu(tmp_path, quantization):
    done = script(
        "scripts/sft.py", "recipes/quickstart.yaml", f"output_dir={tmp_path}/run", f"model.quantization={quantization}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["metrics"]["after"]["eval_loss"] < 0.2 < run["metrics"]["before"]["eval_loss"]
    assert run["hardware"]["device"] == "cuda"
    assert run["memory"]["predicted_gib"] >= run["memory"]["measured_gib"]


def test_the_losses_of_a_gpu_are_those_of_the_cpu_in_float32(tmp_path):
    losses = {}
    for name, environment in (("cpu", {"CUDA_VISIBLE_DEVICES": ""}), ("cuda", {})):
        done = script(
            "scripts/sft.py", "recipes/quickstart.yaml", f"output_dir={tmp_path}/{name}", "model.quantization=none",
            "model.dtype=float32", "trainer.max_steps=10", "trainer.logging_steps=1", "trainer.eval_strategy=no", **environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if "loss" in event]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)


def test_4_bit_gradients_do_not_change_after_an_evaluation():
    from lorasmith import models
    from lorasmith.recipe import Model

    section = Model(name=str(ROOT / "quickstart/base"), quantization="nf4")
    model = models.load_base_model(section, "bfloat16", "sdpa", "cuda")
    embedding = model.get_input_embeddings()
    embedding.weight.requires_grad_()
    ids = torch.arange(3, 67, device="cuda")[None]

    def gradient():
        embedding.weight.grad = None
        model(input_ids=ids, labels=ids).loss.backward()
        return embedding.weight.grad.clone()

    first = gradient()
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    assert torch.equal(first, gradient())


def test_out_of_memory_is_one_line_and_exit_3(tmp_path):
    done = script(
        "-c",
        "import torch, sys; torch.cuda.set_per_process_memory_fraction(0.005); sys.argv = ['sft.py', 'recipes/quickstart.yaml',"
        f"'output_dir={tmp_path}/run', 'model.quantization=none', 'run.effective_batch=2048', 'run.micro_batch=2048',"
        "'run.gradient_checkpointing=false', 'trainer.max_steps=2'];"
        "import runpy; runpy.run_path('scripts/sft.py', run_name='__main__')",
    )
    assert done.returncode == 3, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_row_by_row_is_that_of_each_row_alone(dtype, window):
    """On Ampere and later, 16-bit rows go through torch's kernel for rows of unlike length."""
    from lorasmith.speed.attention import attend
    from lorasmith.speed.batches import ROWS, FlatCollator

    rows = [{"input_ids": list(range(size)), "labels": [-100] * size} for size in (70, 33, 128)]
    batch = FlatCollator(share_prompts=False)(rows)
    given = {key: value.cuda() if torch.is_tensor(value) else value for key, value in batch.items() if "_seq_" in key}
    given |= {"max_length_q": batch["max_length_q"], "max_length_k": batch["max_length_k"], ROWS: batch[ROWS]}
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 231, 64, device="cuda", dtype=dtype, requires_grad=True) for heads in (8, 2, 2)
    )
    out, _ = attend(None, query, key, value, None, scaling=0.125, sliding_window=window, **given)
    out.float().square().sum().backward()
    start = 0
    for size in (70, 33, 128):
        own = [one.detach()[:, :, start : start + size].float().requires_grad_() for one in (query, key, value)]
        here = torch.arange(size, device="cuda")
        mask = (here[None] <= here[:, None]) & (here[None] > here[:, None] - (window or size))
        alone = torch.nn.functional.scaled_dot_product_attention(
            *own, attn_mask=mask, scale=0.125, enable_gqa=True
        ).transpose(1, 2)
        alone.square().sum().backward()
        bound = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close(out[:, start : start + size].float(), alone, **bound)
        for whole, part in zip((query, key, value), own, strict=True):
            torch.testing.assert_close(whole.grad[:, :, start : start + size].float(), part.grad, **bound)
        start += size


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_levers_change_no_loss_on_a_gpu(tmp_path, quantization):
    losses = {}
    for name, off in (("on", []), ("off", ["padding_free", "chunked_loss", "fused_lora", "liger"])):
        done = script(
            "scripts/sft.py", "recipes/quickstart.yaml", f"output_dir={tmp_path}/{name}", "trainer.max_steps=10",
            f"model.quantization={quantization}", "trainer.logging_steps=1", "trainer.eval_strategy=no",
            *(f"speed.{key}=false" for key in off),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        events = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [event["loss"] for event in events if "loss" in event]
    assert losses["on"] == pytest.approx(losses["off"], rel=2e-2)
