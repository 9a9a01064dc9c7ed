"""The plan of grpo.py: what making completions takes, how many are made at once, and how long that is of an update."""

import gc
import json
from dataclasses import replace

import pytest
from conftest import BASE, ROOT, launch, load_benchmark, needs_shared, write_rows
from test_plan_methods import LLAMA, a_plan, a_recipe

from lorasmith.data.lengths import sampled_rows
from lorasmith.errors import RecipeError
from lorasmith.memory import facts, machine
from lorasmith.memory.generation import Generation, cache_bytes, generation_of, making
from lorasmith.memory.methods import METHODS
from lorasmith.memory.peak import Setting, unpacked_bytes
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows, setting_of
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.speed import generation_seconds, update_seconds
from lorasmith.memory.weights import base_bytes
from lorasmith.recipe import Recipe, load_recipe

SMALL = {"hidden_size": 128, "intermediate_size": 704, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 1024, "tie_word_embeddings": True}  # fmt: skip
RUN = {"effective_batch": 32, "micro_batch": 4}


def grpo(gib=24, **trainer):
    """A plan for 32 completions an update of an 8B model, without checkpointing, prompts and completions of 512."""
    run = RUN | {"gradient_checkpointing": False}
    return a_plan("grpo", gib, run=run | trainer.pop("run", {}), trainer=trainer)


def held_while_generating(kind, bits, rows, prompt, completion, **sampling):
    """Bytes that torch's allocator hands out in transformers' generate, over the model's, at most."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    from lorasmith import models
    from lorasmith.speed.lora import fuse_lora

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind[0], **kind[1]), dtype=torch.float32)
    if bits != "none":
        quantize = load_benchmark("memory_grid").quantize_in_place
        quantize(model, models.quantization_config(bits, torch.float32), "cpu")
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    fuse_lora(model)
    ids = torch.randint(3, 900, (rows, prompt))
    seen = torch.ones_like(ids)
    seen[1, : prompt // 4] = 0
    how = {"max_new_tokens": completion, "do_sample": True, "pad_token_id": 0, "top_k": 0} | sampling
    asked = {
        "input_ids": ids,
        "attention_mask": seen,
        "generation_config": GenerationConfig(**how, disable_compile=True),
    }
    with torch.no_grad():
        model.generate(**asked | {"max_new_tokens": 2})
        gc.collect()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            model.generate(**asked)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("kind", "bits", "rows", "prompt", "completion", "trainer"),
    [
        ("llama", "none", 8, 256, 4, {}),  # reading prompts takes most
        ("qwen3", "nf4", 8, 256, 4, {}),
        ("llama", "none", 16, 8, 64, {}),  # the cache does
        ("wide", "none", 32, 8, 4, {}),  # picking tokens does
        ("wide", "none", 32, 8, 4, {"temperature": 0.7, "top_p": 0.9}),
        ("wide", "none", 32, 8, 4, {"top_k": 50}),
        ("wide", "none", 32, 8, 4, {"min_p": 0.05}),
        ("wide", "none", 32, 8, 4, {"repetition_penalty": 1.1}),
    ],
)
def test_what_generate_holds_is_within_5_percent_of_the_plan(kind, bits, rows, prompt, completion, trainer):
    sizes = SMALL | ({"vocab_size": 40_000, "num_hidden_layers": 1} if kind == "wide" else {})
    kind = "llama" if kind == "wide" else kind
    shape = read_shape({"model_type": kind, **sizes})
    values = {"model": {"name": "x", "quantization": bits}, "data": {"train": "x"}, "output_dir": "x"}
    recipe = Recipe.model_validate(values | {"trainer": {"max_completion_length": completion, **trainer}})
    lengths = Rows([prompt] * rows, rows, prompt, 0, 0, "made up").completed(completion)
    setting, _ = setting_of(recipe, shape, lengths, "cpu", by=METHODS["grpo"])
    unpacked = unpacked_bytes(shape, setting)
    planned = making(shape, setting.generation, rows, setting.itemsize, setting.unfused, unpacked)
    measured = held_while_generating((kind, sizes), bits, rows, prompt, completion, **trainer)
    assert sum(planned.values()) == pytest.approx(measured, rel=0.05), planned


def test_the_cache_has_keys_and_values_of_all_that_is_made_at_once():
    plan = grpo(80)
    assert plan.setting.generated == 32
    tokens, layer = 512 + 512 - 1, 32 * 8 * 128 * 2  # an entry of 8 heads of 128 numbers in 16 bit, for 32 completions
    cache = 32 * 2 * tokens * layer
    assert cache_bytes(plan.shape, 32, tokens, 2) == cache
    one = Generation(8, prompt=1, completion=1023)
    parts = making(plan.shape, one, 32, 2, plan.setting.unfused, 0)
    assert parts["cache"] == cache + tokens * layer
    assert parts["sampling"] == 32 * 128_256 * (2 + 4 + 4 + 4)


def test_what_is_made_at_once_is_whole_groups_over_all_processes():
    one = Generation(8, prompt=1, completion=1)
    assert one.choices(4, 8) == [8, 4, 2]
    assert one.choices(2, 16) == [16, 8, 4]
    assert replace(one, processes=2).choices(4, 4) == [4, 2, 1]
    assert replace(one, said="steps", steps=3).choices(4, 8) == []
    assert replace(one, said="steps", steps=16).choices(4, 8) == [16]
    assert replace(one, said="size", size=16).choices(4, 8) == [4]
    assert replace(one, said="size", size=16).choices(3, 8) == []
    with pytest.raises(
        RecipeError, match=r"steps_per_generation is `3`, with run.micro_batch `4`; expected what makes"
    ):
        grpo(steps_per_generation=3)


def test_a_tight_card_gets_fewer_completions_at_once_and_the_plan_says_how_many():
    wide, tight = grpo(80), grpo(9, run={"gradient_checkpointing": True})
    assert (wide.setting.generated, wide.steps_chosen) == (32, 8)
    assert tight.fits
    assert tight.setting.generated in (8, 16)
    assert tight.steps_chosen * 4 == tight.setting.generated
    assert any(f"{tight.setting.generated} at once on each device; generating" in line for line in tight.lines())
    assert "gradients" not in {k for k, v in wide.memory.moments["generation"].items() if v}
    assert tight.memory.moments["generation"]["gradients"] == 4 * tight.setting.adapter_weights(tight.shape)


@pytest.mark.parametrize("said", [{"steps_per_generation": 8}, {"generation_batch_size": 32}])
def test_where_the_recipe_says_how_many_the_proposals_lower_that(said):
    plan = grpo(7.5, run={"gradient_checkpointing": True}, **said)
    assert not plan.fits
    assert plan.steps_chosen == 0
    key = next(iter(said))
    lower = [one.overrides[f"trainer.{key}"] for one in plan.proposals if f"trainer.{key}" in one.overrides]
    assert lower
    assert max(lower) < said[key]
    assert any("trainer.max_completion_length" in one.overrides for one in plan.proposals)
    assert any("trainer.num_generations" in one.overrides for one in plan.proposals)
    assert all(one.memory.total <= plan.machine.budget for one in plan.proposals)


def test_a_run_that_does_not_fit_after_all_is_told_to_make_fewer_at_once():
    from lorasmith.runs.planning import smallest_change

    plan = grpo(16, run={"gradient_checkpointing": True})
    assert plan.memory.moment == "generation"
    assert plan.setting.generated == 32
    assert smallest_change(plan) == "trainer.steps_per_generation=4"


def test_groups_get_smaller_where_not_even_one_fits_at_once():
    plan = grpo(8, run={"gradient_checkpointing": True, "effective_batch": 16}, num_generations=16)
    assert not plan.fits
    assert any(one.overrides.get("trainer.num_generations") == 8 for one in plan.proposals)
    assert not any(one.trains_same for one in plan.proposals if "trainer.num_generations" in one.overrides)


@pytest.mark.parametrize("trainer", [{}, {"steps_per_generation": 2}, {"generation_batch_size": 8}])
def test_trl_takes_what_the_plan_settles(trainer, tmp_path):
    from array import array

    from trl import GRPOConfig

    from lorasmith import hardware
    from lorasmith.data.prepare import Prepared
    from lorasmith.data.render import TokenRow
    from lorasmith.runs.planning import plan_run
    from lorasmith.runs.settings import make_config

    values = {"num_generations": 4, "max_completion_length": 16, **trainer}
    path = a_recipe(tmp_path, [{"question": "Why?", "answer": "1"}], "grpo", trainer=values)
    recipe = load_recipe(path, ["model.dtype=float32", "run.micro_batch=2"], "grpo")
    ids, hidden = array("i", range(9)), array("i", [-100] * 9)
    prepared = Prepared([TokenRow("rows.jsonl:1", ids, hidden)] * 3, [], [])
    device = hardware.find_hardware(use_cpu=True)
    config = json.loads((ROOT / BASE / "config.json").read_text())
    settled, reasons, plan = plan_run(recipe, config, device, prepared, {}, "grpo")
    assert (settled.trainer.get("steps_per_generation"), "steps_per_generation" in reasons) == {
        "steps_per_generation": (2, False),
        "generation_batch_size": (None, False),
    }.get(next(iter(trainer), ""), (4, True))
    made = make_config(GRPOConfig, settled, device, "grpo")
    assert made.steps_per_generation == plan.setting.steps
    assert made.generation_batch_size == plan.setting.generated
    chosen = settled.model_copy(update={"trainer": settled.trainer | ({} if trainer else {"steps_per_generation": 2})})
    again, _, _ = plan_run(recipe, config, device, prepared, {"recipe": chosen.model_dump()}, "grpo")
    assert again.trainer == chosen.trainer


def test_a_prompt_lies_once_before_its_completions_in_a_micro_batch():
    import torch

    from lorasmith.speed.answers import lay_out

    prompts = [[7] * 30, [8] * 30]
    rows = [prompts[i // 4] + [10 + i + j for j in range(20)] for i in range(8)]
    ids = torch.tensor(rows)
    scored = torch.zeros_like(ids)
    scored[:, 30:] = 1
    laid = lay_out(ids, torch.ones_like(ids), scored, [[0, 1, 2, 3], [4, 5, 6, 7]], 0)
    flat = laid["model"]["input_ids"].shape[1]
    made = Generation(4, prompt=30, completion=20, steps=1, shared=True)
    plain = Setting("none", "float32", (), 0, 1, longest=50, supervised=20, micro_batch=8, flat=True, lengths=(50,) * 8)
    assert replace(plain, generation=made).tokens == flat == 2 * 29 + 8 * 21
    # Of four prompts that are made at once and shuffled, a micro-batch of eight may hold all.
    assert replace(plain, lengths=(50,) * 16, generation=replace(made, steps=2)).tokens == 4 * 29 + 8 * 21
    assert replace(plain, generation=replace(made, shared=False)).tokens == 8 * 50


def test_a_reference_reads_before_the_policy_does_and_no_activations_are_held_then(tmp_path):
    plain, referred = grpo(80), grpo(80, beta=0.04)
    assert (plain.setting.readings, referred.setting.readings) == (0, 1)
    assert "reference" not in plain.memory.moments
    assert referred.memory.at("reference") < referred.memory.at("loss")
    assert referred.speed < plain.speed
    assert grpo(80, num_iterations=2).setting.readings == 1
    assert grpo(80, steps_per_generation=16).setting.readings == 1
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "target_modules": "all-linear"}')
    adapter = {"from": str(tmp_path)}
    assert not a_plan("grpo", 80, adapter=adapter).setting.copied
    assert a_plan("grpo", 80, adapter=adapter, trainer={"beta": 0.04}).setting.copied


def test_other_models_in_memory_are_counted_or_said_not_to_be(tmp_path):
    reward = tmp_path / "reward"
    reward.mkdir()
    config = {"base_model_name_or_path": "Qwen/Qwen3-0.6B", "revision": None}
    (reward / "adapter_config.json").write_text(json.dumps(config))
    (reward / "adapter_model.safetensors").write_bytes(b"0" * 1000)
    rewards = [{"model": str(reward)}, {"model": str(tmp_path / "none")}, "rewards/match.py:numeric"]
    plan = a_plan("grpo", 80, rewards=rewards)
    shape = read_shape(facts.known_models()["Qwen/Qwen3-0.6B"])
    known = Setting("none", "bfloat16", (), 0, 1, 1, 1, loss="score")
    assert {moment["reward models"] for moment in plan.memory.moments.values()} == {base_bytes(shape, known) + 1000}
    assert plan.notes == (
        f"the reward model {tmp_path / 'none'} is not counted: its base's config.json cannot be read",
    )
    (reward / "recipe.yaml").write_text("model: {name: Qwen/Qwen3-0.6B, quantization: nf4}\n")
    smaller = a_plan("grpo", 80, rewards=rewards[:1])
    assert (
        smaller.memory.moments["loaded"]["reward models"]
        == base_bytes(shape, replace(known, quantization="nf4")) + 1000
    )


def test_vllm_takes_its_share_of_the_card_and_makes_the_completions_itself():
    plan = a_plan("grpo", 24, trainer={"use_vllm": True})
    assert plan.memory.moments["loaded"]["vLLM"] == int(0.3 * plan.machine.budget)
    assert "cache" not in plan.memory.moments["generation"]
    assert "vLLM takes trainer.vllm_gpu_memory_utilization (0.3) of the card, 7.1 GiB" in plan.notes[0]
    assert not any("generating them" in line for line in plan.lines())


def test_making_completions_takes_as_long_as_its_formula_says():
    plan = grpo(80)
    shape, setting, rate = plan.shape, plan.setting, plan.machine.rate
    cache = 3 * cache_bytes(shape, 32, 1, 2) * (512 + 256)
    moved = (2.5 + 2) * shape.used_weights + 2 * shape.vocab * shape.hidden + cache
    weights = shape.used_weights + setting.adapter_weights(shape)
    arithmetic = 2 * 32 * (weights + shape.vocab * shape.hidden) / rate.flops
    token = max(arithmetic, moved / rate.bytes) + 0.001 * shape.layers
    prompts = 2 * 32 * 512 * weights / rate.flops + 0.001 * shape.layers
    assert generation_seconds(shape, setting, 512, rate) == pytest.approx(prompts + 512 * token)
    generating, training = update_seconds(shape, setting, plan.rows.lengths, rate)
    assert plan.seconds == pytest.approx(plan.updates * (generating + training))
    halves = replace(setting, generation=setting.generation.made_at_once(4))
    assert generating < update_seconds(shape, halves, plan.rows.lengths, rate)[0] < 2 * generating


def test_an_epoch_is_every_prompt_once_with_all_its_completions():
    assert grpo(80, num_train_epochs=1).updates == 64 * 8 // 32
    assert grpo(80, num_train_epochs=1, num_iterations=2).updates == 2 * 64 * 8 // 32
    assert grpo(80, max_steps=5).updates == 5


def test_prompts_that_are_looked_at_are_counted_as_the_model_is_asked(tmp_path):
    from transformers import AutoTokenizer

    rows = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(40)]
    path = a_recipe(tmp_path, rows, "grpo")
    overrides = ["data.system=Count.", "data.max_prompt_length=500"]
    found = sampled_rows(load_recipe(path, overrides, "grpo"), "grpo")
    tokenizer = AutoTokenizer.from_pretrained(ROOT / BASE)
    turns = [[{"role": "system", "content": "Count."}, {"role": "user", "content": row["question"]}] for row in rows]
    wanted = [len(tokenizer.apply_chat_template(one, add_generation_prompt=True)["input_ids"]) for one in turns]
    assert found.lengths == wanted
    assert (found.count, found.supervised, found.longest, found.prompt) == (40, 0, max(wanted), max(wanted))
    write_rows(
        tmp_path / "rows.jsonl", {"messages": [*turns[0], {"role": "assistant", "content": "0"}]}, {"prompt": "Say 1"}
    )
    told, plain = sampled_rows(load_recipe(path, overrides, "grpo"), "grpo").lengths
    assert (told, plain) == (wanted[0], len(tokenizer("Say 1")["input_ids"]))
    (tmp_path / "rows.jsonl").unlink()
    assert set(sampled_rows(load_recipe(path, overrides, "grpo"), "grpo").lengths) == {500}
    assert set(sampled_rows(load_recipe(path, [], "grpo"), "grpo").lengths) == {512}


@needs_shared
def test_plan_reads_a_grpo_recipe_with_the_rows_of_gsm8k():
    path = "recipes/grpo/qwen3-0.6b-grpo-lora-8gb.yaml"
    done = launch("scripts/plan.py", path, "--gpu", "8", "--max", "data.train=../shared/data/math_gsm8k_train.jsonl")
    assert done.returncode == 0, done.stderr
    assert "prompts: 7,3" in done.stdout
    assert (
        "  grpo: 32 completions of up to 512 tokens an update, 32 at once on each device; generating them"
        in done.stdout
    )
    assert "  longest completion, 32 at once and at micro-batch 1: " in done.stdout
    assert f"next: accelerate launch scripts/grpo.py {path}" in done.stdout


def test_the_longest_completion_and_the_largest_micro_batch_that_are_shown_fit_and_no_more():
    from lorasmith.memory import sheet

    plan = grpo(24, run={"gradient_checkpointing": True})
    lines = sheet.limits(plan)
    longest = int(lines[1].rpartition(": ")[2].split()[0].replace(",", ""))
    recipe = plan.recipe.model_copy(update={"run": plan.recipe.run.model_copy(update={"micro_batch": 1})})
    for tokens, fits in ((longest, True), (longest + 64, False)):
        trainer = plan.recipe.trainer | {"max_completion_length": tokens, "steps_per_generation": 32}
        again = recipe.model_copy(update={"trainer": trainer})
        rows = Rows([512] * 64, 64, 512, 0, 0, "made up")
        assert make_plan(again, plan.shape, rows, machine.a_card(24), method="grpo").fits is fits, tokens


def test_generation_of_a_recipe_knows_its_ways():
    values = {"model": {"name": LLAMA}, "data": {"train": "x"}, "output_dir": "x"}
    recipe = Recipe.model_validate(
        values | {"trainer": {"num_generations": 4, "beta": 0.1, "generation_batch_size": 16}}
    )
    one = generation_of(recipe, 10, 20, 2, True)
    assert (one.group, one.said, one.size, one.reference, one.shared) == (4, "size", 16, True, True)
    assert [key for axis in one.smaller((16, 8)) for key, _ in axis] == [
        "trainer.max_completion_length", "trainer.max_completion_length", "trainer.num_generations",
        "trainer.generation_batch_size", "trainer.generation_batch_size", "trainer.generation_batch_size",
    ]  # fmt: skip
