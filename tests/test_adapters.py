"""Every adapter method trains, and what is saved gives the same logits with plain peft in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BASE, NO_EVAL, ROOT, launch, sft, write_rows

from lorasmith.adapters import adapter_config, coverage_lines, loraplus_optimizer
from lorasmith.errors import ModelError
from lorasmith.models import load_base_model
from lorasmith.recipe import Adapter, Model

FEW = ["trainer.max_steps=3", "trainer.logging_steps=1", *NO_EVAL, "model.dtype=float32"]

# Runs by the plain libraries alone: nothing of this project is imported. On CPUs with AVX512-bf16, bitsandbytes' own
# 4-bit kernel for evaluation rounds to bfloat16 and gives dora packed weights to read: its plain one is compared.
PLAIN = """
import json, sys, torch
import bitsandbytes.nn.modules
bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
from peft import AutoPeftModelForCausalLM
from transformers import BitsAndBytesConfig
for folder, quantization in json.loads(sys.argv[1]):
    options = {}
    if quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization != "none":
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_storage=torch.float32)
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    model.eval()
    with torch.no_grad():
        torch.save(model(torch.arange(3, 60)[None]).logits, f"{folder}/logits.pt")
"""

RUNS = {
    "lora": [],
    "rslora": [],
    "dora": [],
    "pissa": [],
    "olora": [],
    "eva": [],
    "loftq": ["model.quantization=nf4"],
    "nf4": ["adapter.method=lora", "model.quantization=nf4"],
    "int8": ["adapter.method=lora", "model.quantization=int8"],
    "fp4-dora": ["adapter.method=dora", "model.quantization=fp4"],
    "tokens": ["adapter.method=lora", "model.add_tokens=[<|a|>,<|b|>]"],
    "many-tokens": ["adapter.method=lora", "model.add_tokens=[%s]" % ",".join(f"<|{i}|>" for i in range(90))],  # noqa: UP031
    "head": ["adapter.method=lora", "adapter.options.modules_to_save=[lm_head]"],
    "pattern": [
        "adapter.method=lora",
        "adapter.target_modules=.*layers.[01].*_proj",
        "adapter.options.alpha_pattern={q_proj: 3}",
    ],
    "ia3": ["adapter={method: ia3}"],
    "loha": ["adapter.target_modules=[q_proj,v_proj]"],
    "lora-plus": ["adapter.method=lora", "adapter.loraplus_lr_ratio=4"],
    "vera": ["adapter={method: vera, target_modules: [q_proj, v_proj]}"],
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, torch.Tensor]]:
    """Each run's folder and the logits of its live model just before the process would have ended."""
    from lorasmith import adapters

    root = tmp_path_factory.mktemp("methods")
    found = {}
    live: dict[str, torch.Tensor] = {}
    original = adapters.save_adapter

    def keep(model, folder, *rest):
        model.eval()
        with torch.no_grad():
            live[folder.name] = model(torch.arange(3, 60)[None]).logits.float()
        original(model, folder, *rest)

    patch = pytest.MonkeyPatch()
    patch.chdir(ROOT)
    patch.setattr(adapters, "save_adapter", keep)
    for name, overrides in RUNS.items():
        method = [] if any("method" in word for word in overrides) else [f"adapter.method={name}"]
        quantization = [] if any("quantization" in word for word in overrides) else ["model.quantization=none"]
        folder = sft("recipes/quickstart.yaml", *FEW, *method, *quantization, *overrides, f"output_dir={root / name}")
        found[name] = (folder, live[name])
    patch.undo()
    kinds = [
        (str(folder), json.loads((folder / "run.json").read_text())["recipe"]["model"]["quantization"])
        for folder, _ in found.values()
    ]
    subprocess.run([sys.executable, "-c", PLAIN, json.dumps(kinds)], cwd=ROOT, check=True, capture_output=True)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_plain_peft_in_a_fresh_process_gives_the_same_logits(name, runs):
    folder, live = runs[name]
    plain = torch.load(folder / "logits.pt").float()[..., :951]
    live = live[..., :951]
    tolerance = 2e-4 if name in ("pissa", "olora", "loftq") else 2e-5
    assert ((plain - live).norm() / live.norm()).item() < tolerance


@pytest.mark.parametrize("name", RUNS)
def test_the_adapter_changes_the_logits(name, runs):
    base = load_base_model(
        Model(name=BASE, quantization=json.loads((runs[name][0] / "run.json").read_text())["recipe"]["model"]["quantization"]),
        "float32", "sdpa", "cpu",
    )  # fmt: skip
    with torch.no_grad():
        plain = base(torch.arange(3, 60)[None]).logits[..., :951]
    live = runs[name][1][..., :951]
    assert ((plain - live).norm() / live.norm()).item() > 1e-4


def test_only_the_rows_of_new_tokens_are_trained_and_saved(runs):
    from safetensors.torch import load_file

    weights = load_file(runs["tokens"][0] / "adapter_model.safetensors")
    [rows] = [tensor for name, tensor in weights.items() if "trainable_tokens" in name]
    assert rows.shape == (2, 128)
    assert not any("embed_tokens.weight" in name or "lm_head.weight" in name for name in weights)
    weights = load_file(runs["many-tokens"][0] / "adapter_model.safetensors")
    assert [tensor.shape[0] for name, tensor in weights.items() if "trainable_tokens" in name] == [90]
    assert not any(tensor.shape[0] > 1000 for tensor in weights.values())


def test_new_rows_move_and_all_other_rows_stay(small_model, tmp_path):
    """An untied base: input and output rows both learn; checked on a model that is trained in this process."""
    from peft import AutoPeftModelForCausalLM

    base = small_model("llama")
    rows = [
        {"messages": [{"role": "user", "content": "<|new|>"}, {"role": "assistant", "content": "<|new|> lamp"}]}
    ] * 4
    data = write_rows(tmp_path / "r.jsonl", *[{**row, "id": i} for i, row in enumerate(rows)])
    folder = sft(
        "recipes/quickstart.yaml", *FEW, f"model.name={base}", "model.quantization=none", f"data.train={data}",
        "model.add_tokens=[<|new|>]", "run.effective_batch=4", "run.micro_batch=4", f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from transformers import AutoTokenizer

    new = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|new|>")
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        original = layer.original_module.weight
        changed = (layer.weight != original).any(dim=1).nonzero().flatten().tolist()
        assert changed == [new]


def test_an_adapter_is_continued_and_its_rank_is_its_own(runs, tmp_path):
    first = runs["nf4"][0]
    arguments = [
        "recipes/quickstart.yaml",
        *FEW,
        f"adapter.from={first}",
        "adapter.rank=16",
        "trainer.learning_rate=1e-9",
    ]
    second = sft(*arguments, f"output_dir={tmp_path / 'second'}")
    from safetensors.torch import load_file

    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    assert max((before[name] - after[name]).abs().max().item() for name in before) < 1e-6
    done = launch("scripts/sft.py", *arguments[:-2], "adapter.rank=4", f"output_dir={tmp_path / 'third'}")
    assert done.returncode == 2
    assert done.stderr == f"error: adapter.rank is `4`; the adapter in {first} has 16. Remove adapter.rank.\n"


@pytest.fixture(scope="module")
def base():
    return load_base_model(Model(name=BASE), "float32", "sdpa", "cpu")


@pytest.mark.parametrize(
    ("section", "refusal"),
    [
        ({"target_modules": ["q_proj", "v_prj"]}, "adapter.target_modules: `v_prj` matches no module. Did you mean `v_proj`?"),
        ({"target_modules": ["q_proj", "zzz"]}, "adapter.target_modules: `zzz` matches no module. Linear layers: down_proj, "
         "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."),
        ({"target_modules": "query.*"}, "adapter.target_modules: `query.*` matches no module. Linear layers: down_proj, "
         "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."),
        ({"target_modules": ["lm_head"]}, "adapter.target_modules: `lm_head` cannot carry an adapter, since trl's loss reads "
         "its weight directly. Train it whole with adapter.options.modules_to_save: [lm_head]."),
        ({"options": {"modules_to_save": ["lm_haed"]}}, "adapter.modules_to_save: `lm_haed` matches no module. Linear layers: "
         "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."),
        ({"options": {"layers_to_transform": [0, 9]}}, "adapter.options.layers_to_transform: 9; the model has layers 0 to 4."),
        ({"method": "ia3", "rank": 8}, "adapter.rank is given; peft's ia3 has no such setting. Remove it."),
    ],
)  # fmt: skip
def test_what_matches_nothing_is_refused(section, refusal, base):
    with pytest.raises(ModelError) as caught:
        adapter_config(Adapter(**section), base, [])
    assert str(caught.value) == refusal


def test_coverage_counts_layers_and_parameters():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_base_model(Model(name=BASE), "float32", "sdpa", "cpu"), LoraConfig(r=2, target_modules=["q_proj"])
    )
    assert coverage_lines(model, Adapter(rank=2, target_modules=["q_proj"])) == [
        "adapter: lora rank 2 on 5 of 35 linear layers (q_proj 5)",
        "trainable: 2,560 of 1,118,080 parameters (0.23%)",
    ]


def test_lora_plus_gives_b_its_own_rate():
    from peft import LoraConfig, get_peft_model
    from transformers import TrainingArguments

    model = get_peft_model(
        load_base_model(Model(name=BASE), "float32", "sdpa", "cpu"), LoraConfig(target_modules=["q_proj"])
    )
    arguments = TrainingArguments("unused", learning_rate=1e-4, use_cpu=True)
    optimizer = loraplus_optimizer(model, Adapter(loraplus_lr_ratio=16), arguments)
    rates = {group["lr"] for group in optimizer.param_groups if group["params"]}
    assert rates == {1e-4, 16e-4}


def test_loftq_starts_closer_to_the_full_weights_than_a_plain_adapter(tmp_path):
    """Against the definition: the rank-r truncation of the error leaves exactly the tail of its singular values."""
    from bitsandbytes.functional import dequantize_4bit
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    from lorasmith.adapters import start_from_quantization_error

    model = get_peft_model(
        load_base_model(Model(name=BASE, quantization="nf4"), "float32", "sdpa", "cpu"),
        LoraConfig(r=8, lora_alpha=32, target_modules=["up_proj"]),
    )
    start_from_quantization_error(model, Path(BASE))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    full = load_file(f"{BASE}/model.safetensors")["model.layers.0.mlp.up_proj.weight"].float()
    weight = layer.get_base_layer().weight
    error = full - dequantize_4bit(weight.data, weight.quant_state).float()
    tail = torch.linalg.svdvals(error)[8:].norm()
    torch.testing.assert_close((error - layer.get_delta_weight("default")).norm(), tail, rtol=1e-4, atol=1e-6)
    assert tail < error.norm()
