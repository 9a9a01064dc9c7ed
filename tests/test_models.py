"""Loading: quantization trains for real on a CPU, and evaluating in between changes nothing."""

import pytest
import torch
from conftest import BASE, SHARED, needs_shared

from lorasmith.errors import ModelError, UnreachableError
from lorasmith.hardware import Hardware, choose_attention, choose_dtype
from lorasmith.models import (
    base_facts,
    grow_embeddings,
    load_base_model,
    load_tokenizer,
    quantization_config,
    weight_fingerprint,
)
from lorasmith.recipe import Adapter, Model

CPU = Hardware("cpu", "test", 1.0, 1)


def loaded(quantization: str = "none", **changes):
    return load_base_model(Model(name=BASE, quantization=quantization, **changes), "float32", "sdpa", "cpu")


@pytest.mark.parametrize(
    ("quantization", "low", "high"), [("nf4", 0.05, 0.12), ("fp4", 0.08, 0.20), ("int8", 0.001, 0.02)]
)
def test_quantized_weights_are_as_close_as_their_bits_allow(quantization, low, high):
    """Relative error of each layer's weights, de-quantized by transformers; normal weights lose about 9 % to nf4."""
    full, quantized = loaded().state_dict(), loaded(quantization).dequantize().state_dict()
    layers = [name for name in full if name.endswith("_proj.weight")]
    assert len(layers) == 35
    for name in layers:
        error = (quantized[name].float() - full[name]).norm() / full[name].norm()
        assert low < error < high, name


def gradients(model) -> dict[str, torch.Tensor]:
    ids = torch.arange(3, 67).view(2, 32)
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_gradients_after_an_evaluation_are_those_of_a_fresh_load(quantization):
    """bitsandbytes 0.50.2 repacks 4-bit weights at the first evaluation on CPUs with AVX512-bf16."""
    from peft import LoraConfig, get_peft_model

    def adapted():
        torch.manual_seed(0)
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
        return get_peft_model(loaded(quantization), config)

    evaluated = adapted()
    first = gradients(evaluated)
    evaluated.eval()
    with torch.no_grad():
        evaluated(torch.arange(3, 40)[None])
    second, fresh = gradients(evaluated), gradients(adapted())
    assert len(fresh) == 70
    for name, gradient in fresh.items():
        assert gradient.norm() > 0
        torch.testing.assert_close(second[name], gradient, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(first[name], gradient, rtol=1e-5, atol=1e-7)


def test_every_4bit_layer_on_a_cpu_is_kept_from_repacking(monkeypatch):
    """As on a CPU with AVX512-bf16, which not every machine that runs this has."""
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    layers = [m for m in loaded("nf4").modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 35
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


def test_4bit_weights_are_quantized_twice_and_stored_for_fsdp():
    config = quantization_config("nf4", torch.bfloat16)
    assert config is not None
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_quant_storage == torch.bfloat16


def test_embeddings_grow_but_never_shrink():
    model = loaded()
    tokenizer, _ = load_tokenizer(Model(name=BASE))
    grow_embeddings(model, tokenizer)
    assert len(tokenizer) < 1024
    assert model.get_input_embeddings().weight.shape[0] == 1024
    tokenizer.add_tokens([f"<{i}>" for i in range(100)])
    grow_embeddings(model, tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) > 1024


def test_a_fingerprint_tells_other_weights_of_the_same_shape(small_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    source = small_model("llama")
    copy = shutil.copytree(source, tmp_path / "copy")
    assert weight_fingerprint(copy) == weight_fingerprint(source)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert weight_fingerprint(copy) != weight_fingerprint(source)


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        ("./nowhere", r"model.name is `./nowhere`; no such folder"),
        ("no-such/model", r"no-such/model \(main\) is not on this machine and the hub is out of reach"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_one_line(name, refusal):
    with pytest.raises((ModelError, UnreachableError), match=refusal) as caught:
        load_tokenizer(Model(name=name))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(tmp_path, small_model):
    import shutil

    folder = shutil.copytree(small_model("llama"), tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no weights as safetensors; pickle is refused"):
        load_base_model(Model(name=str(folder)), "float32", "sdpa", "cpu")


def test_positions_and_attention_come_from_the_config_alone(small_model):
    llama, gemma = base_facts(Model(name=BASE)), base_facts(Model(name=str(small_model("gemma2"))))
    assert (llama.positions, llama.runs_on_sdpa, llama.config["model_type"]) == (512, True, "llama")
    assert (gemma.positions, gemma.runs_on_sdpa) == (512, False)
    assert choose_attention("auto", runs_on_sdpa=False)[0] == "eager"


def test_a_cpu_refuses_float16_and_says_what_to_use():
    with pytest.raises(ModelError, match="Use auto, float32 or bfloat16"):
        choose_dtype("float16", CPU)


def test_the_dtype_of_a_cpu_is_measured_and_explained():
    dtype, reason = choose_dtype("auto", CPU)
    assert dtype in ("float32", "bfloat16")
    assert "a bfloat16 matmul takes" in reason


@needs_shared
def test_a_base_without_template_tokens_gets_them_as_new_rows():
    tokenizer, new = load_tokenizer(Model(name=str(SHARED / "models/stories260K-hf"), chat_template="chatml"))
    assert tokenizer.convert_ids_to_tokens(new) == ["<|im_start|>", "<|im_end|>"]
    assert new == [512, 513]
    assert tokenizer.eos_token == "<|im_end|>"
    assert Adapter().method == "lora"
