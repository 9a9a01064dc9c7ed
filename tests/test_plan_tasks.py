"""Plans of classifiers, taggers, answer finders and encoder-decoders: exact shapes, memory as measured, speed, choices."""

import gc
from dataclasses import replace

import pytest
from conftest import ROOT, load_benchmark

from lorasmith.errors import ModelError
from lorasmith.memory import machine
from lorasmith.memory.lengths import with_length
from lorasmith.memory.methods import METHODS
from lorasmith.memory.padded import evaluated
from lorasmith.memory.peak import plan_memory
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows, setting_of
from lorasmith.memory.shapes import ENCODER_DECODERS, ENCODERS, UnknownArchitectureError, read_shape
from lorasmith.memory.speed import flops_per_token
from lorasmith.memory.weights import base_bytes
from lorasmith.recipe import Recipe

TASKS = ("text_classification", "token_classification", "question_answering")
AUTO = {
    "text_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
BERT = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160, "vocab_size": 320,
        "max_position_embeddings": 130}  # fmt: skip
BART = {"d_model": 64, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 160,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 96, "vocab_size": 320}  # fmt: skip
T5 = {"d_model": 64, "d_kv": 24, "d_ff": 160, "num_layers": 3, "num_heads": 4, "vocab_size": 320}
DEBERTA = BERT | {"relative_attention": True, "pos_att_type": "p2c|c2p"}
CONFIGS = {
    "bert": [BERT],
    "roberta": [BERT],
    "xlm-roberta": [BERT],
    "electra": [BERT | {"embedding_size": 32}, BERT | {"embedding_size": 64}],
    "distilbert": [{"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 160, "vocab_size": 320}],
    "modernbert": [BERT, BERT | {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "classifier_bias": True}],
    "deberta-v2": [
        BERT,
        DEBERTA | {"share_att_key": True, "position_buckets": 32, "norm_rel_ebd": "layer_norm", "type_vocab_size": 0},
        DEBERTA | {"position_biased_input": False, "conv_kernel_size": 3, "embedding_size": 32},
    ],
    "t5": [T5, T5 | {"num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}],
    "mt5": [T5],
    "umt5": [T5],
    "bart": [BART],
    "mbart": [BART],
    "marian": [BART, BART | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 300}],
}


def benchmark(monkeypatch):
    """benchmarks/task_memory.py as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # whose programs import each other by name
    return load_benchmark("task_memory")


def a_recipe(**sections):
    return Recipe.model_validate({"model": {"name": "made up"}, "data": {"train": "x"}, "output_dir": "x"} | sections)


def a_setting(shape, method, length=256, target=64, device="cuda", sections=None, **changes):
    written = {"targets": (target,), "target": target, "eval_target": target} if method == "seq2seq" else {}
    rows = Rows([length] * 64, 64, length, 0, length, "made up", **written)
    setting, _ = setting_of(a_recipe(**(sections or {})), shape, rows, device, by=METHODS[method])
    return replace(setting, **changes)


def real(kind, config, method):
    """The model that transformers makes of a config, without weights."""
    import torch
    import transformers

    with torch.device("meta"):
        made = transformers.AutoConfig.for_model(kind, **config, pad_token_id=0)
        return getattr(transformers, AUTO[method]).from_config(made)


def test_every_encoder_and_encoder_decoder_that_the_plan_knows_is_compared_here():
    assert set(CONFIGS) == set(ENCODERS) | set(ENCODER_DECODERS)


@pytest.mark.parametrize(("kind", "config"), [(k, c) for k, some in CONFIGS.items() for c in some])
def test_shapes_are_those_of_the_real_model_with_each_of_its_heads(kind, config):
    import torch

    shape = read_shape({"model_type": kind, "pad_token_id": 0, **config})
    for method in TASKS if kind in ENCODERS else ("seq2seq",):
        model = real(kind, config, method)
        head = shape.head_weights(2, METHODS[method].of_rows) if kind in ENCODERS else 0
        assert shape.parameters + head == sum(weight.numel() for weight in model.parameters()), method
        for stack in filter(None, (shape, shape.decoder)):
            block = model.get_submodule(f"{stack.path}.0")
            found = {
                name: (one.in_features, one.out_features, one.bias is not None)
                for name, one in block.named_modules()
                if isinstance(one, torch.nn.Linear)
            }
            assert {one.name: (one.inputs, one.outputs, one.bias) for one in stack.linears} == found


@pytest.mark.parametrize("kind", ["electra", "deberta-v2", "modernbert", "t5", "marian"])
def test_all_linear_reaches_the_layers_that_the_plan_counts(kind):
    from peft import LoraConfig, get_peft_model

    config, method = CONFIGS[kind][-1], "seq2seq" if kind in ENCODER_DECODERS else "token_classification"
    shape = read_shape({"model_type": kind, **config})
    heads = None if method == "seq2seq" else ["classifier", *(["head"] if kind == "modernbert" else [])]
    excluded = rf"(.*\.)?({'|'.join(heads)})(\..*)?" if heads else None
    options = {"target_modules": "all-linear", "exclude_modules": excluded, "modules_to_save": heads}
    model = get_peft_model(real(kind, config, method), LoraConfig(r=4, **options))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    setting = a_setting(shape, method, sections={"adapter": {"rank": 4}})
    assert setting.adapter_weights(shape) + setting.whole == trained
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    assert base_bytes(shape, replace(setting, dtype="float32")) == 4 * frozen


@pytest.mark.parametrize(
    ("model", "method"), [("bert", "text_classification"), ("deberta-v2", "question_answering"), ("t5", "seq2seq")]
)
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantized_base_is_counted_to_the_byte(model, method, quantization, monkeypatch, tmp_path):
    found = benchmark(monkeypatch)
    cell = found.Cell(model, method, quantization)
    setting, planned = found.plan_of(cell)
    held = load_benchmark("memory_grid").held_bytes(found.model_of(cell, tmp_path, setting.attention))
    assert planned.at("loaded") == pytest.approx(held, rel=3e-3)


SHORT = {"length": 128, "micro_batch": 4}
QUICK = [
    {"model": "bert", **SHORT},
    {"model": "deberta-v2", "task": "token_classification", "quantization": "nf4", **SHORT},
    {"model": "modernbert", "task": "question_answering", **SHORT},
    {"model": "gpt2", "task": "token_classification", **SHORT},
    {"model": "t5", "task": "seq2seq", "target": 32, **SHORT},
    {"model": "bart", "task": "seq2seq", "quantization": "int8", "target": 32, "checkpointing": True, **SHORT},
]
OTHERS = [
    {"model": "roberta", "checkpointing": True, **SHORT},
    {"model": "electra", "task": "token_classification", "quantization": "int8", **SHORT},
    {"model": "distilbert", "task": "question_answering", "fused": True, **SHORT},
    {"model": "llama", "task": "text_classification", "quantization": "nf4", **SHORT},
    {"model": "bert", "task": "token_classification", "dropout": False, "length": 64, "evaluate": 512},
    {"model": "mt5", "task": "seq2seq", "target": 256, "length": 64},
    {"model": "marian", "task": "seq2seq", "quantization": "nf4", "target": 32, "accumulation": 2, **SHORT},
]


@pytest.mark.parametrize("cell", QUICK, ids=str)
def test_memory_is_within_5_percent_of_what_a_training_takes(cell, monkeypatch):
    found = benchmark(monkeypatch)
    measured = found.measure(found.Cell(**cell))
    assert abs(measured["error"]) <= 0.05, measured


@pytest.mark.slow
@pytest.mark.parametrize("cell", OTHERS, ids=str)
def test_memory_is_within_5_percent_of_what_other_trainings_take(cell, monkeypatch):
    test_memory_is_within_5_percent_of_what_a_training_takes(cell, monkeypatch)


@pytest.mark.parametrize(
    ("model", "rows", "length", "target", "beams"),
    [
        ("bart", 4, 256, 8, 4),  # the keys of the source take most
        ("t5", 8, 64, 32, 4),  # the cache and picking the best do
        ("marian", 8, 512, 4, 1),  # reading the source does
    ],
)
def test_writing_targets_with_beams_takes_what_the_plan_says(model, rows, length, target, beams, monkeypatch, tmp_path):
    import torch

    found = benchmark(monkeypatch)
    cell = found.Cell(model, "seq2seq")
    setting, _ = found.plan_of(cell)
    adapted = found.model_of(cell, tmp_path, setting.attention).eval()
    ids = torch.randint(3, 900, (rows, length))
    seen = torch.ones_like(ids)
    seen[1:, length // 2 :] = 0
    how = {"input_ids": ids, "attention_mask": seen, "num_beams": beams, "do_sample": False}
    with torch.no_grad():
        adapted.generate(**how, max_new_tokens=2, min_new_tokens=2)
        gc.collect()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            adapted.generate(**how, max_new_tokens=target, min_new_tokens=target)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    asked = replace(setting, eval_longest=length, eval_target=target, eval_batch=rows, beams=beams)
    planned = sum(evaluated(read_shape(found.config_of(cell)), asked, 0).values())
    assert planned == pytest.approx(most, rel=0.05)


@pytest.mark.parametrize("kind", list(CONFIGS))
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_more_tokens_rows_rank_or_beams_never_plan_less_and_checkpointing_never_more(kind, device):
    shape = read_shape({"model_type": kind, **CONFIGS[kind][-1]})
    for method in ("seq2seq",) if kind in ENCODER_DECODERS else TASKS:
        plain = a_setting(shape, method, device=device)
        needs = {
            "longest": [replace(plain, longest=n, eval_longest=n) for n in (16, 64, 512, 2048)],
            "target": [replace(plain, target=n, eval_target=n) for n in (16, 64, 512)],
            "micro_batch": [replace(plain, micro_batch=n) for n in (1, 2, 8, 32)],
            "rank": [replace(plain, rank=n) for n in (1, 8, 64)],
            "beams": [replace(plain, beams=n) for n in (1, 4, 8)],
            "checkpointing": [replace(plain, checkpointing=one) for one in ("all", "none")],
        }
        for name, settings in needs.items():
            sizes = [plan_memory(shape, one).total for one in settings]
            assert sizes == sorted(sizes), (method, name, sizes)


def test_all_logits_of_a_target_are_counted_at_once():
    shape = read_shape({"model_type": "t5", **T5, "vocab_size": 32128})
    small, large = (a_setting(shape, "seq2seq", target=n, device="cpu", dtype="float32") for n in (64, 128))
    more = plan_memory(shape, large).moments["loss"]["loss"] - plan_memory(shape, small).moments["loss"]["loss"]
    assert more == 64 * small.micro_batch * 32128 * 3 * 4  # logits, their likelihoods, their gradient
    assert plan_memory(shape, large).moment == "loss"


def test_a_head_is_held_twice_and_trained_whole():
    shape = read_shape({"model_type": "bert", **BERT})
    head = 64 * 64 + 64 + 64 * 2 + 2
    rows, tokens = (a_setting(shape, method) for method in ("text_classification", "token_classification"))
    assert (rows.head, rows.whole) == (head, head)
    assert tokens.head == 64 * 2 + 2
    assert plan_memory(shape, rows).at("loaded") - plan_memory(shape, tokens).at("loaded") == (64 * 64 + 64) * (2 + 4)


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_arithmetic_is_what_torch_counts(kind):
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model
    from torch.utils.flop_counter import FlopCounterMode

    method = "seq2seq" if kind == "bart" else "token_classification"
    made = transformers.AutoConfig.for_model(kind, **CONFIGS[kind][0] | {"vocab_size": 2048}, pad_token_id=0)
    model = getattr(transformers, AUTO[method]).from_config(made, attn_implementation="eager")
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", exclude_modules=["classifier"]))
    length, target = 128, 64
    ids = torch.randint(3, 300, (2, length))
    labels = torch.randint(0, 2, (2, target if method == "seq2seq" else length))
    with FlopCounterMode(display=False) as counted:
        model(input_ids=ids, labels=labels).loss.backward()
    shape = read_shape({"model_type": kind, **CONFIGS[kind][0], "vocab_size": 2048})
    setting = a_setting(shape, method, length, target)
    planned = 2 * length * flops_per_token(shape, setting, length)
    assert planned == pytest.approx(counted.get_total_flops(), rel=0.1)


@pytest.mark.parametrize("method", [*TASKS, "seq2seq"])
def test_a_plan_chooses_what_fits_and_says_how_long_it_takes(method):
    kind = "bart" if method == "seq2seq" else "roberta"
    config = {"model_type": kind} if method == "seq2seq" else {"model_type": kind, "max_position_embeddings": 514}
    shape = read_shape(config)
    written = {"targets": (64,) * 500, "target": 128, "eval_target": 128} if method == "seq2seq" else {}
    rows = Rows([100, 200, 300, 400, 500] * 100, 500, 500, 0, 500, "made up", **written)
    recipe = a_recipe(run={"effective_batch": 32})
    plans = [make_plan(recipe, shape, rows, machine.a_card(gib), method=method) for gib in (6, 80)]
    assert all(plan.fits for plan in plans)
    assert plans[0].setting.micro_batch < plans[1].setting.micro_batch or plans[0].setting.checkpointing != "none"
    assert not plans[1].setting.flat
    assert plans[1].speed >= plans[0].speed
    assert "tokens/s" in plans[1].time_line()
    run = {"effective_batch": 32, "micro_batch": 32, "gradient_checkpointing": False}
    tight = make_plan(a_recipe(run=run), shape, rows, machine.a_card(4), method=method)
    assert not tight.fits
    assert tight.proposals
    assert all("offload" not in one.text() for one in tight.proposals)


def test_rows_longer_than_the_models_positions_are_refused_and_others_told():
    shape = read_shape({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
    assert shape.positions == 512
    with pytest.raises(ModelError, match=r"trainer.max_length is `600`; the model has 512 positions"):
        with_length(a_recipe(trainer={"max_length": 600}), shape.positions, "text_classification")
    with pytest.raises(UnknownArchitectureError, match="a `modernbert` of 5 heads of 64"):
        read_shape({"model_type": "modernbert", **BERT, "num_attention_heads": 5})
