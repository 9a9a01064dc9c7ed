"""GGUF files, read back by transformers; adapters as GGUF; Ollama's Modelfile; and llama.cpp itself where it is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BASE, SHARED
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorasmith.errors import FitError, LorasmithError, ModelError, RunError, UnreachableError
from lorasmith.export import gguf as gguf_module
from lorasmith.export.engines import GgufEngine, GgufFileEngine, TransformersEngine
from lorasmith.export.files import beside, plain_model
from lorasmith.export.gguf import older_names, pre_tokenizer_like, to_gguf
from lorasmith.export.gguf_lora import folded, to_gguf_lora
from lorasmith.export.llama_cpp import converter
from lorasmith.export.modelfile import modelfile, render, template_in

STORIES = SHARED / "models/stories260K-hf"
IDS = [445, 309, 926, 9, 287, 223, 802, 1, 90, 201]


@pytest.fixture(scope="session")
def llama_cpp_folder() -> Path:
    for package in ("gguf", "sentencepiece"):
        pytest.importorskip(package)
    try:
        return converter()
    except UnreachableError as error:
        pytest.skip(f"llama.cpp's converter is not in the cache: {error}")


@pytest.fixture(scope="session")
def f32_file(llama_cpp_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "base-f32.gguf"
    return to_gguf(Path(BASE), out, "f32", llama_cpp_folder, pre_tokenizer="gpt-2")


@pytest.fixture
def copied(tmp_path) -> Path:
    """The quickstart's base, to be spoiled."""
    return Path(shutil.copytree(BASE, tmp_path / "model"))


def change(folder: Path, **keys: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_an_f32_file_read_back_by_transformers_is_bit_exact_in_logits_and_tokens(f32_file):
    pytest.importorskip("gguf")
    ours, whole = GgufFileEngine(f32_file), TransformersEngine(Path(BASE))
    assert (ours.logits(IDS) == whole.logits(IDS)).all()
    assert ours.greedy(IDS, 12) == whole.greedy(IDS, 12)
    assert ours.tokens_per_second > 0
    assert "float32" in ours.name
    tokenizer = AutoTokenizer.from_pretrained(f32_file.parent, gguf_file=f32_file.name)
    own = AutoTokenizer.from_pretrained(BASE)
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer.eos_token_id == own.eos_token_id
    text = "Ich hätte 33 gern,\n\n  don't <|im_end|> 你好"
    assert tokenizer(text).input_ids == own(text).input_ids


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        pytest.param("bf16", 1e-6, marks=pytest.mark.slow),
        pytest.param("f16", 2e-3, marks=pytest.mark.slow),
        ("q8_0", 3e-2),
    ],
)
def test_narrower_kinds_are_as_near_as_their_numbers_allow(llama_cpp_folder, tmp_path, kind, most):
    pytest.importorskip("gguf")
    out = to_gguf(Path(BASE), tmp_path / f"{kind}.gguf", kind, llama_cpp_folder, pre_tokenizer="gpt-2")
    got, want = GgufFileEngine(out).logits(IDS), TransformersEngine(Path(BASE)).logits(IDS)
    assert np.linalg.norm(got - want) / np.linalg.norm(want) <= most
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.skipif(not STORIES.is_dir(), reason="stories260K is not here")
def test_a_model_with_a_sentencepiece_tokenizer_is_bit_exact_too(llama_cpp_folder, tmp_path):
    pytest.importorskip("gguf")
    out = to_gguf(STORIES, tmp_path / "stories.gguf", "f32", llama_cpp_folder)
    ours, whole = GgufFileEngine(out), TransformersEngine(STORIES)
    ids = [1, 403, 407, 261, 378]
    assert (ours.logits(ids) == whole.logits(ids)).all()
    assert ours.greedy(ids, 20) == whole.greedy(ids, 20)


def test_gpt2_converts_though_transformers_no_longer_writes_n_ctx(llama_cpp_folder, small_model, tmp_path):
    pytest.importorskip("gguf")
    folder = small_model("gpt2", n_positions=1024)  # the only number that transformers' reader of GGUF knows
    assert "n_ctx" not in json.loads((folder / "config.json").read_text())
    out = to_gguf(folder, tmp_path / "gpt2.gguf", "f32", llama_cpp_folder, pre_tokenizer="gpt-2")
    assert np.abs(GgufFileEngine(out).logits(IDS) - TransformersEngine(folder).logits(IDS)).max() < 1e-5


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        pytest.param({"rope_type": "default", "rope_theta": 1e6}, {"rope.freq_base": 1e6}, marks=pytest.mark.slow),
        (
            {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 128},
            {"rope.freq_base": 5e5, "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
        ),
    ],
)
def test_positions_of_transformers_5_reach_the_file(llama_cpp_folder, small_model, tmp_path, rope, keys):
    reader = pytest.importorskip("gguf").GGUFReader
    folder = small_model("qwen3", rope_parameters=rope)
    out = to_gguf(folder, tmp_path / "rope.gguf", "f32", llama_cpp_folder, pre_tokenizer="gpt-2")
    fields = reader(out)
    for key, value in keys.items():
        assert fields.get_field(f"qwen3.{key}").contents() == pytest.approx(value)


def test_older_checkouts_find_the_positions_under_their_own_names():
    llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    old = older_names({"model_type": "llama", "rope_parameters": llama3})
    assert old["rope_theta"] == 5e5
    assert old["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    assert "rope_scaling" not in older_names({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})


def test_an_unknown_tokenizer_is_refused_with_the_name_that_fits_it(llama_cpp_folder, tmp_path):
    with pytest.raises(ModelError, match="--pre-tokenizer gpt-2") as caught:
        to_gguf(Path(BASE), tmp_path / "a.gguf", "f32", llama_cpp_folder)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("digits", "merges", "name"),
    [(r"\p{N}{1,3}", True, "llama-bpe"), (r"\p{N}", False, "qwen2"), (r"\p{N}+", False, None)],
)
def test_the_pre_tokenizer_is_recognised_by_what_it_splits(tmp_path, digits, merges, name):
    content = json.loads(Path(BASE, "tokenizer.json").read_text())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"]["use_regex"] = False
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    content["model"]["ignore_merges"] = merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert pre_tokenizer_like(tmp_path) == name


@pytest.mark.slow
def test_a_padded_vocabulary_is_refused_or_mended_with_the_bases_tokenizer_model(llama_cpp_folder, tmp_path):
    """A SentencePiece model that transformers 5 saved without its tokenizer.model, with rows for 24 tokens more."""
    sentencepiece = pytest.importorskip("sentencepiece")
    gguf = pytest.importorskip("gguf")
    if not STORIES.is_dir():
        pytest.skip("stories260K is not here")
    model = tmp_path / "padded"
    whole = AutoModelForCausalLM.from_pretrained(STORIES)
    whole.resize_token_embeddings(536)
    whole.save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    tokenizer.add_tokens(["<|call|>"], special_tokens=True)
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match="536 rows and its vocabulary 513 tokens"):
        to_gguf(model, tmp_path / "a.gguf", "f32", llama_cpp_folder)
    base = tmp_path / "base"
    base.mkdir()
    proto = pytest.importorskip("transformers.convert_slow_tokenizer").import_protobuf()
    pieces = proto.ModelProto()
    pieces.trainer_spec.model_type = 2
    pieces.trainer_spec.vocab_size = 512
    pieces.trainer_spec.byte_fallback = True
    names = sorted(AutoTokenizer.from_pretrained(STORIES).get_vocab().items(), key=lambda item: item[1])
    for text, number in names:
        kind = 2 if number == 0 else 3 if number < 3 else 6 if text.startswith("<0x") else 1
        pieces.pieces.add(piece=text, score=float(-number), type=kind)
    (base / "tokenizer.model").write_bytes(pieces.SerializeToString())
    assert sentencepiece.SentencePieceProcessor(model_file=str(base / "tokenizer.model")).vocab_size() == 512
    out = to_gguf(model, tmp_path / "b.gguf", "f32", llama_cpp_folder, base=base)
    tokens = gguf.GGUFReader(out).get_field("tokenizer.ggml.tokens").contents()
    assert len(tokens) == 536
    assert tokens[512] == "<|call|>"
    assert tokens[:3] == ["<unk>", "<s>", "</s>"]


MALFORMED = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "an adapter": (lambda folder: (folder / "adapter_config.json").write_text("{}"), "Merge it"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "expected an object"),
    "config is cut": (lambda folder: (folder / "config.json").write_text('{"a": '), "not valid JSON"),
    "quantized": (lambda folder: change(folder, quantization_config={"quant_method": "bitsandbytes"}), "bitsandbytes"),
    "pickle": (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickled"),
    "weights cut": (lambda folder: cut(folder / "model.safetensors", -100), "cut off"),
    "header cut": (lambda folder: cut(folder / "model.safetensors", 30), "not a whole safetensors file"),
    "weights empty": (lambda folder: cut(folder / "model.safetensors", 0), "not a whole safetensors file"),
    "header is no JSON": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"hi"),
        "not a whole",
    ),
    "no weights in it": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}"),
        "no tensors",
    ),
    "a shard is missing": (
        lambda folder: index(folder, {"a": "model-2.safetensors"}),
        "model-2.safetensors is missing",
    ),
    "index without a map": (lambda folder: index(folder, []), "not an index of shards"),
    "own code": (lambda folder: (folder / "modeling_own.py").write_text("raise SystemExit"), "--trust-remote-code"),
    "own code by name": (lambda folder: change(folder, auto_map={"AutoModel": "x--y.Z"}), "--trust-remote-code"),
    "unknown architecture": (
        lambda folder: change(folder, architectures=["NobodysForCausalLM"]),
        "no GGUF for Nobodys",
    ),
    "unknown weight": (lambda folder: rename_weight(folder), "no place for its weight"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("token*")], "failed"),
}


def cut(path: Path, size: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:size])


def index(folder: Path, names: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def rename_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.extra.gate"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


CONVERTED_FIRST = ("unknown weight", "no tokenizer")  # told by the converter, after seconds of imports


@pytest.mark.parametrize(
    "what", [pytest.param(one, marks=pytest.mark.slow) if one in CONVERTED_FIRST else one for one in MALFORMED]
)
def test_a_malformed_model_is_one_line_and_leaves_nothing(llama_cpp_folder, copied, tmp_path, what):
    spoil, line = MALFORMED[what]
    spoil(copied)
    with pytest.raises(ModelError, match=line) as caught:
        to_gguf(copied, tmp_path / "out/a.gguf", "f32", llama_cpp_folder, pre_tokenizer="gpt-2")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir() if (tmp_path / "out").exists() else [])


def test_an_unknown_kind_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(ModelError, match="q4_k_m"):
        to_gguf(tmp_path / "nowhere", tmp_path / "a.gguf", "q4", tmp_path)


def test_a_kind_below_8_bit_without_llama_cpp_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_module, "is_installed", lambda: False)
    with pytest.raises(LorasmithError, match=r"pip install 'lorasmith\[llama-cpp\]'.*4 to 11 minutes.*q8_0"):
        to_gguf(Path(BASE), tmp_path / "a.gguf", "q4_k_m", tmp_path)


def test_the_place_beside_becomes_the_result_whole_or_not_at_all(tmp_path):
    out = tmp_path / "a/out.bin"
    with pytest.raises(FitError, match="needs about"), beside(out, 1e18):
        pass
    with pytest.raises(FitError, match="filled up"), beside(out, 0):
        raise OSError(28, "No space left on device")
    with beside(out, 0) as place:
        place.write_text("x")
        assert not out.exists()
    assert out.read_text() == "x"
    with pytest.raises(RunError, match="there already"), beside(out, 0):
        pass
    assert [path.name for path in out.parent.iterdir()] == ["out.bin"]


def test_weights_are_counted_from_the_headers_alone():
    model, source = AutoModelForCausalLM.from_pretrained(BASE), plain_model(Path(BASE))
    assert source.num_weights == model.num_parameters()
    linear = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not model.lm_head]
    assert source.num_linear == sum(one.weight.numel() for one in linear)
    assert source.width == 2


def test_the_converter_is_named_or_cached_or_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match="--llama-cpp-dir"):
        converter(cache=tmp_path)
    with pytest.raises(LorasmithError, match=r"no convert_hf_to_gguf.py"):
        converter(llama_cpp_dir=tmp_path)
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py/gguf"):
        (tmp_path / name).mkdir(parents=True)
    assert converter(llama_cpp_dir=tmp_path) == tmp_path


def test_only_the_known_archive_is_taken_and_only_the_converters_out_of_it(tmp_path, monkeypatch):
    import io
    import tarfile

    from lorasmith.export import llama_cpp

    archive = tmp_path / f"llama_cpp_python-{llama_cpp.VERSION}.tar.gz"
    top = f"llama_cpp_python-{llama_cpp.VERSION}/vendor/llama.cpp/"
    names = [top + name for name in llama_cpp.WANTED if "." in name or name == "LICENSE"]
    names += [top + "conversion/base.py", top + "gguf-py/gguf/__init__.py", top + "conversion.exe", top + "ggml/x.c"]
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    llama_cpp._unpack(archive, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "LICENSE",
        "conversion",
        "convert_hf_to_gguf.py",
        "convert_lora_to_gguf.py",
        "gguf-py",
    ]
    with tarfile.open(archive, "w:gz") as tar:
        for name in [*names, top + "conversion/../../../evil.py"]:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match="leads out of the archive"):
        llama_cpp._unpack(archive, tmp_path / "second")
    assert not (tmp_path / "evil.py").exists()
    # pip, asked for the archive in this folder, which is not the known one.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with pytest.raises(UnreachableError, match="not the known one"):
        converter(cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Save a random adapter of these settings, and give its folder and its model."""

    def make(**settings):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        words = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
        model = get_peft_model(base, LoraConfig(**(words | settings)))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        return folder, model

    return make


SCALES = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6}, "alpha_pattern": {"down_proj": 3}},
    "all": {"use_rslora": True, "rank_pattern": {"o_proj": 8}, "alpha_pattern": {"o_proj": 5, "0.mlp.gate_proj": 1}},
}


@pytest.mark.parametrize("what", SCALES)
def test_every_scale_is_folded_as_peft_has_it(adapters, what):
    folder, model = adapters(**SCALES[what])
    weights, settings = folded(folder)
    assert (settings["lora_alpha"], settings["use_rslora"]) == (settings["r"], False)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            a, b = (weights[f"{name}.lora_{part}.weight"] for part in "AB")
            torch.testing.assert_close(b @ a * (settings["r"] / a.shape[0]), module.get_delta_weight("default"))


@pytest.mark.parametrize("what", ["all", *(pytest.param(one, marks=pytest.mark.slow) for one in list(SCALES)[:3])])
def test_an_adapter_as_gguf_changes_every_matrix_as_peft_does(llama_cpp_folder, adapters, tmp_path, what):
    """llama.cpp adds alpha / rank * lora_b @ lora_a; peft says what it should be."""
    gguf = pytest.importorskip("gguf")
    folder, model = adapters(**SCALES[what])
    out = to_gguf_lora(folder, Path(BASE), tmp_path / "lora.gguf", llama_cpp_folder)
    reader = gguf.GGUFReader(out)
    alpha = reader.get_field("adapter.lora.alpha").contents()
    tensors = {
        one.name: torch.tensor(one.data.copy()).reshape(list(map(int, one.shape))[::-1]) for one in reader.tensors
    }
    places = {"o_proj": "attn_output", "up_proj": "ffn_up", "gate_proj": "ffn_gate", "down_proj": "ffn_down"}
    compared = 0
    for name, module in model.named_modules():
        part = name.rpartition(".")[2]
        if part in (*places, "v_proj") and hasattr(module, "lora_A"):
            layer = name.split("layers.")[1].split(".")[0]
            key = f"blk.{layer}.{places.get(part, 'attn_v')}.weight.lora_"
            a, b = tensors[f"{key}a"], tensors[f"{key}b"]
            torch.testing.assert_close(b @ a * (alpha / a.shape[0]), module.get_delta_weight("default"))
            compared += 1
    assert compared == 5 * 5


REFUSED = {
    "DoRA": {"use_dora": True},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "trained tokens": {"trainable_token_indices": [5, 6]},
    "biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_adapter_that_gguf_cannot_hold_is_to_be_merged(adapters, what):
    folder, _ = adapters(**REFUSED[what])
    with pytest.raises(ModelError, match="Merge it instead") as caught:
        folded(folder)
    assert what in str(caught.value)


SPOILT_ADAPTERS = {
    "pissa": ({"init_lora_weights": "pissa_niter_4"}, "changed in the base"),
    "no LoRA": ({"peft_type": "IA3"}, "IA3 adapter has no GGUF"),
    "no rank": ({"r": None}, "no rank"),
    "another rank": ({"r": 8}, "its config says 8"),
}


@pytest.mark.parametrize("what", SPOILT_ADAPTERS)
def test_a_spoilt_adapter_is_one_line(adapters, what):
    changes, line = SPOILT_ADAPTERS[what]
    folder, _ = adapters()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=line):
        folded(folder)


def test_an_adapter_without_weights_or_with_strange_ones_is_refused(adapters):
    from safetensors.torch import load_file, save_file

    folder, _ = adapters()
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file(weights | {"base_model.model.model.norm.weight": torch.ones(3)}, path)
    with pytest.raises(ModelError, match=r"cannot hold .*norm\.weight"):
        folded(folder)
    path.write_bytes(b"\0" * 9)
    with pytest.raises(ModelError, match="can be read"):
        folded(folder)


LLAMA2 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if m.role == 'user' %}[INST] {{ (s if loop.first else '') + m.content }} [/INST]{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are {{ '{{' }}kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}"
    "<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}<start>model\n"
)
TEMPLATES = {"own": None, "llama 2": LLAMA2, "a system message of its own": DEFAULT_SYSTEM, "no system": NO_SYSTEM}


@pytest.mark.parametrize("what", TEMPLATES)
def test_a_modelfile_renders_as_the_chat_template_does(what):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = TEMPLATES[what] or tokenizer.chat_template
    text = modelfile(tokenizer, "model-q8_0.gguf", stop_ids=[0, 2], context=512)
    assert text.startswith("FROM ./model-q8_0.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    assert 'PARAMETER stop "<|endoftext|>"\n' in text
    assert text.endswith("PARAMETER num_ctx 512\n")
    talk = [
        {"role": "user", "content": "Eins {{ .zwei }}"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4"},
    ]
    system = {"role": "system", "content": "Sag's {{ end }}."}
    for messages, told in ((talk, ""), (talk[:1], ""), ([system, *talk], system["content"])):
        if told and what == "no system":
            continue
        want = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert render(template_in(text), messages, told) == want


def test_the_quickstarts_modelfile_is_this():
    text = modelfile(AutoTokenizer.from_pretrained(BASE), "model.gguf")
    turn = "<|im_start|>%s\n{{ .Content }}<|im_end|>\n"
    assert text == (
        'FROM ./model.gguf\nTEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "user" }}'
        + turn % "user"
        + '{{ else if eq .Role "assistant" }}'
        + turn % "assistant"
        + '{{ end }}{{ end }}<|im_start|>assistant\n"""\nPARAMETER stop "<|im_end|>"\n'
    )


def test_the_bos_that_the_engine_adds_is_not_written_twice():
    tokenizer = AutoTokenizer.from_pretrained(BASE, bos_token="<|endoftext|>")
    tokenizer.backend_tokenizer.post_processor = template_processing()
    assert tokenizer("x").input_ids[0] == 0
    tokenizer.chat_template = "{{ bos_token }}" + NO_SYSTEM
    assert "<|endoftext|>" not in template_in(modelfile(tokenizer, "a.gguf"))
    tokenizer.chat_template = NO_SYSTEM
    with pytest.raises(ModelError, match="a token more"):
        modelfile(tokenizer, "a.gguf")


def template_processing():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])


EACH = "{% for m in messages %}"
UNSAYABLE = {
    "the number of turns": (EACH + "{{ m.content }}|{{ messages | length }}|{% endfor %}>", "when others follow"),
    "only the last turn": ("{{ messages[-1].content }}>", "moves or repeats"),
    "contents twice": (EACH + "{{ m.content }}{{ m.content }}{% endfor %}>", "moves or repeats"),
    "contents changed": (EACH + "{{ m.content | upper }}{% endfor %}>", "moves or repeats"),
    "long contents cut": (EACH + "{{ m.content[:12] }}|{% endfor %}>", "at character 12"),
    "the date": ("{{ strftime_now('%d %b') }}" + EACH + "{{ m.content }}|{% endfor %}>", "the day's date"),
    "quotes": (EACH + '"""{{ m.content }}|{% endfor %}>', "quotes"),
    "broken": (EACH, "refuses a plain conversation"),
    "endless": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "hostile"),
}


@pytest.mark.parametrize("what", UNSAYABLE)
def test_a_chat_template_that_a_modelfile_cannot_say_is_refused(what):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template, line = UNSAYABLE[what]
    with pytest.raises(ModelError, match=line) as caught:
        modelfile(tokenizer, "a.gguf")
    assert "\n" not in str(caught.value)


def test_a_modelfile_without_chat_template_sends_the_bare_prompt_and_bad_names_are_refused():
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = None
    assert template_in(modelfile(tokenizer, "a.gguf")) == "{{ .Prompt }}"
    with pytest.raises(ModelError, match="cannot name"):
        modelfile(tokenizer, "a.gguf\nSYSTEM evil")


def test_an_engine_refuses_what_is_no_gguf_in_one_line(tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(ModelError, match="no such file"):
        GgufFileEngine(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"safe")
    with pytest.raises(ModelError, match="not a GGUF"):
        GgufFileEngine(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError, match="cannot open it"):
        GgufFileEngine(tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", ["f32", "q6_k", "q5_k_m", "q4_k_m", "q4_0"])
def test_llama_cpp_answers_as_transformers_does(llama_cpp_folder, f32_file, tmp_path, kind):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    out = f32_file
    if kind != "f32":
        out = to_gguf(Path(BASE), tmp_path / "a.gguf", kind, llama_cpp_folder, pre_tokenizer="gpt-2")
        assert out.stat().st_size < f32_file.stat().st_size / 2
    engine, whole = GgufEngine(out, context=64), TransformersEngine(Path(BASE))
    got, want = engine.logits(IDS), whole.logits(IDS)
    assert got.shape == want.shape
    assert np.linalg.norm(got - want) / np.linalg.norm(want) < {"f32": 2e-3, "q6_k": 0.1}.get(kind, 0.3)
    if kind == "f32":
        new, expected = engine.greedy(IDS, 12), whole.greedy(IDS, 12)
        # llama.cpp ends an answer at <|endoftext|> too, by its name; the model's own settings do not say so.
        end = next((i for i, token in enumerate(expected) if token in (0, 2)), 11) + 1
        assert new == expected[:end]
        tokenizer = AutoTokenizer.from_pretrained(BASE)
        asked = tokenizer.apply_chat_template([{"role": "user", "content": "one red mug"}], add_generation_prompt=True)
        asked = list(asked["input_ids"])
        assert engine.greedy(asked, 30) == whole.greedy(asked, 30)
        assert len(engine.greedy(asked, 30)) > 5
        for text in ("I've 3 or 33, 333 don'T\n\n  \t\nx", "你好 é <|im_end|>", " a  b   c\n"):
            assert engine._model.tokenize(text.encode(), add_bos=False, special=True) == tokenizer(text).input_ids
    engine.close()


def test_llama_cpp_takes_the_adapter_with_its_scales(llama_cpp_folder, f32_file, adapters, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder, model = adapters(**SCALES["all"])
    out = to_gguf_lora(folder, Path(BASE), tmp_path / "lora.gguf", llama_cpp_folder)
    engine = GgufEngine(f32_file, context=64, adapter=out)
    with torch.no_grad():
        want = model.eval()(torch.tensor([IDS])).logits[0].numpy()
    assert np.linalg.norm(engine.logits(IDS) - want) / np.linalg.norm(want) < 5e-3
    engine.close()


def test_an_engine_of_llama_cpp_leaves_nothing_to_complain_about(f32_file):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    code = f"from pathlib import Path; from lorasmith.export.engines import GgufEngine; e = GgufEngine(Path({str(f32_file)!r})); e.close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Error" not in done.stderr
