"""Plans of the preference scripts: which method a recipe is for, its rows as sequences, its memory, what it may change."""

import importlib
import json
from dataclasses import replace

import pytest
from conftest import BASE, NO_EVAL, ROOT, launch, load_benchmark, write_rows
from test_dpo import pairs_of_orders
from test_kto import judged_orders

from lorasmith.data.lengths import sampled_rows
from lorasmith.errors import RecipeError
from lorasmith.memory import facts, machine
from lorasmith.memory.methods import METHODS
from lorasmith.memory.peak import Setting, plan_memory, scored_tokens
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows, setting_of
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.speed import flops_per_token
from lorasmith.memory.weights import base_bytes
from lorasmith.recipe import Recipe, load_recipe
from lorasmith.recipe_method import method_of
from lorasmith.upstream import CONFIGS, TASKS

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
PREFERENCES = sorted(path for one in CONFIGS if one != "sft" for path in (ROOT / "recipes" / one).glob("*.yaml"))


def a_recipe(folder, rows, method, **sections):
    """A recipe over rows with the quickstart's base, which names no schema."""
    train = write_rows(folder / "rows.jsonl", *rows)
    trainer = {} if method == "grpo" else {"max_length": 512}
    recipe = {
        "model": {"name": BASE}, "data": {"train": str(train)}, "run": {"effective_batch": 8}, "output_dir": "unset",
        "trainer": trainer | ({"beta": 0.1} if method != "reward" else {}),
    }  # fmt: skip
    if method == "grpo":
        recipe["rewards"] = ["rewards/match.py:numeric"]
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | sections))
    return path


def a_plan(method, gib=24, length=1024, **changes):
    """The plan of a method for an 8B model with rows of one length, of which half is trained, or made and trained."""
    if method == "grpo":
        changes["trainer"] = {"max_completion_length": length // 2} | changes.get("trainer", {})
    values = {"model": {"name": LLAMA, "quantization": "nf4"}, "data": {"train": "x"}, "output_dir": "unset"}
    recipe = Recipe.model_validate(values | changes)
    shape = read_shape(facts.known_models()[LLAMA])
    return make_plan(recipe, shape, some_rows(method, length), machine.a_card(gib), method=method)


def some_rows(method, length, trained=None):
    """Rows of one length, of which half is trained; for grpo its other half, which it goes on with."""
    if method == "grpo":
        return Rows([length // 2] * 64, 64, length // 2, 0, length // 2, "made up")
    trained = length // 2 if trained is None else trained
    return Rows([length] * 64, 64, length, trained, length, "made up", trained)


def test_every_training_script_is_counted():
    assert set(METHODS) == set(CONFIGS)


def test_a_recipe_is_for_the_script_of_its_first_line_or_of_the_run_beside_it(tmp_path):
    assert all(method_of(path) == path.parent.name for path in PREFERENCES)
    assert method_of(ROOT / "recipes/quickstart.yaml") == "sft"
    assert method_of(ROOT / "recipes/prepare/chat.yaml") is None
    path = a_recipe(tmp_path, pairs_of_orders(8), "dpo")
    assert method_of(path) is None
    (tmp_path / "run.json").write_text('{"method": "kto"}')
    assert method_of(path) == "kto"
    (tmp_path / "run.json").write_text("{")
    assert method_of(path) is None
    assert method_of(tmp_path / "none.yaml") is None


def test_plan_reads_a_dpo_recipe_as_dpo_does_and_names_its_script():
    path = "recipes/dpo/qwen3-4b-dpo-qlora-12gb.yaml"
    done = launch("scripts/plan.py", path, "--gpu", "12", "trainer.beta=0.2")
    assert done.returncode == 0, done.stderr
    assert "rows: 1,000 pairs, which are 2,000 sequences of 1,024 tokens" in done.stdout
    assert "\nreference " in done.stdout
    assert "micro-batch 1 (2 sequences)" in done.stdout
    assert f"next: accelerate launch scripts/dpo.py {path} trainer.beta=0.2" in done.stdout


def test_a_recipe_of_another_script_that_does_not_say_so_is_refused_with_the_way(tmp_path):
    path = a_recipe(tmp_path, judged_orders(40), "kto")
    done = launch("scripts/plan.py", path, "--gpu", "8", "trainer.desirable_weight=1.5")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "unknown key `beta`" in done.stderr
    assert done.stderr.endswith("It is no recipe of sft.py; say whose: --method kto.\n")
    said = launch("scripts/plan.py", path, "--gpu", "8", "trainer.desirable_weight=1.5", "--method", "kto")
    assert said.returncode == 0, said.stderr
    assert "rows: 40 of " in said.stdout
    assert "scripts/kto.py" in said.stdout
    nonsense = launch("scripts/plan.py", path, "--gpu", "8", "trainer.bata=1.5")
    assert "--method" not in nonsense.stderr


def test_what_is_written_fits_counts_pairs_and_keeps_the_script(tmp_path):
    path = a_recipe(tmp_path, pairs_of_orders(40), "dpo", run={"effective_batch": 8, "micro_batch": 8})
    first = "# yaml-language-server: $schema=../dpo.schema.json\n"
    path.write_text(first + path.read_text())
    tight = ["--gpu", "0.52", "run.gradient_checkpointing=true"]
    before = launch("scripts/plan.py", path, *tight)
    assert before.returncode == 3, before.stdout + before.stderr
    written = launch("scripts/plan.py", path, *tight, "--write")
    assert written.returncode == 0, written.stderr
    assert "run.micro_batch=" in written.stdout
    assert path.read_text().startswith(first)
    assert load_recipe(path, [], "dpo").run.micro_batch in (1, 2, 4)
    assert launch("scripts/plan.py", path, *tight[:2]).returncode == 0


@pytest.mark.parametrize("kind", ["pairs", "judged", "text"])
def test_rows_that_are_looked_at_are_those_that_a_run_counts(kind, tmp_path, capsys):
    from lorasmith import models
    from lorasmith.data import prepare_judged, prepare_pairs
    from lorasmith.runs.planning import rows_of

    rows = judged_orders(60) if kind == "judged" else pairs_of_orders(60)
    if kind == "text":
        rows = [{"prompt": f"Number {i}:", "chosen": " yes" * (i + 1), "rejected": " no"} for i in range(60)]
    method = "kto" if kind == "judged" else "dpo"
    recipe = load_recipe(a_recipe(tmp_path, rows, method), [], method)
    tokenizer, _ = models.load_tokenizer(recipe.model)
    if kind == "judged":
        read = prepare_judged.read_train_and_eval_judged(recipe.data, recipe.seed)
        prepared = prepare_judged.prepare_judged(recipe.data, tokenizer, *read, 512)
    else:
        read = prepare_pairs.read_train_and_eval_pairs(recipe.data, recipe.seed)
        prepared = prepare_pairs.prepare_pairs(recipe.data, tokenizer, *read, 512)
    looked, counted = sampled_rows(recipe, method), rows_of(prepared)
    assert sorted(looked.lengths) == sorted(counted.lengths)
    for name in ("count", "longest", "supervised", "prompt", "eval_longest"):
        assert getattr(looked, name) == getattr(counted, name), name
    assert looked.count == len(rows) * METHODS[method].sequences
    assert looked.why == "all rows, its own tokenizer"


def test_of_a_large_file_the_head_is_looked_at_and_no_file_is_rows_of_max_length(tmp_path):
    rows = [{"prompt": f"{i}:", "chosen": " word" * 400, "rejected": " none"} for i in range(3000)]
    recipe = load_recipe(a_recipe(tmp_path, rows, "dpo", data={"train": str(tmp_path / "rows.jsonl")}), [], "dpo")
    found = sampled_rows(recipe, "dpo")
    assert found.count == pytest.approx(2 * 3000, rel=0.02)
    assert "rows looked at, the longest taken as max_length" in found.why
    assert found.longest == 512
    (tmp_path / "rows.jsonl").unlink()
    assert sampled_rows(recipe, "dpo").count == 2000
    assert sampled_rows(recipe, "kto").count == 1000
    assert set(sampled_rows(recipe, "dpo").lengths) == {512}


def test_without_the_tokenizer_both_answers_are_counted_by_bytes(tmp_path):
    rows = [{"prompt": "a" * 400, "chosen": "b" * 400, "rejected": "c" * 40}]
    recipe = load_recipe(a_recipe(tmp_path, rows, "dpo"), ["model.name=Qwen/Qwen3-0.6B"], "dpo")
    assert sampled_rows(recipe, "dpo").lengths == [208, 118]


def test_a_pair_is_two_sequences_of_one_micro_batch_and_its_settings_count_pairs():
    run = {"effective_batch": 6, "micro_batch": 3}
    plan = a_plan("dpo", run=run)
    assert (plan.setting.micro_batch, plan.setting.accumulation, plan.micro_batch) == (6, 2, 3)
    assert plan.updates == 3 * -(-32 // 6)
    assert plan.tokens == plan.updates * 6 * 2 * 1024
    assert a_plan("kto", run=run).setting.micro_batch == 3
    assert a_plan("dpo", trainer={"per_device_eval_batch_size": 5}).setting.eval_batch == 10
    assert a_plan("dpo").kind != a_plan("sft").kind


def test_kto_never_gets_a_micro_batch_of_one_row(tmp_path):
    assert a_plan("kto", gib=9, run={"effective_batch": 4}).setting.micro_batch >= 2
    assert a_plan("kto", run={"effective_batch": 3}).setting.micro_batch == 3
    with pytest.raises(RecipeError, match=r"run.effective_batch is `1`; expected 2 rows or more for each of 1 devices"):
        a_plan("kto", run={"effective_batch": 1})
    path = a_recipe(tmp_path, judged_orders(8), "kto")
    with pytest.raises(RecipeError, match=r"run.effective_batch is `1`; kto compares the rows of a micro-batch"):
        load_recipe(path, ["run.effective_batch=1"], "kto")


def test_the_reference_reads_while_the_policys_activations_are_held():
    for method, has in (("sft", False), ("dpo", True), ("kto", True), ("orpo", False), ("reward", False)):
        assert ("reference" in a_plan(method).memory.moments) is has, method
    plan = a_plan("dpo", run={"micro_batch": 4, "gradient_checkpointing": False})
    moment, loss = plan.memory.moments["reference"], plan.memory.moments["loss"]
    states = plan.setting.tokens * plan.shape.hidden * 2
    answers = scored_tokens(plan.setting, plan.setting.tokens) * plan.shape.hidden * 2
    assert moment["activations"] == loss["activations"] + states + answers
    assert max(moment.get("transient", 0), moment.get("loss", 0)) > 0
    asked_before = a_plan("dpo", trainer={"precompute_ref_log_probs": True})
    assert "reference" not in asked_before.memory.moments


def test_kto_reads_answers_behind_other_prompts_too():
    plan = a_plan("kto", run={"micro_batch": 2, "gradient_checkpointing": False})
    assert plan.setting.mixed == 1024
    longer = replace(plan.setting, mixed=1536)
    sizes = [plan_memory(plan.shape, one).at("reference") for one in (plan.setting, longer)]
    assert sizes[0] < sizes[1]
    assert (plan.setting.readings, a_plan("dpo").setting.readings, a_plan("sft").setting.readings) == (3, 1, 0)
    alone = a_plan("kto", trainer={"loss_type": "apo_zero_unpaired"})
    assert (alone.setting.mixed, alone.setting.readings) == (0, 1)
    trained = replace(plan.setting, reference=False, mixed=0)
    forwards = flops_per_token(plan.shape, plan.setting, 1024) - flops_per_token(plan.shape, trained, 1024)
    weights = plan.shape.used_weights + plan.shape.vocab * plan.shape.hidden
    attention = 1024 * plan.shape.layers * plan.shape.heads * plan.shape.head_dim
    assert forwards == pytest.approx(3 * 2 * (weights + attention))


def test_a_frozen_copy_of_a_continued_adapter_takes_four_bytes_a_weight(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "target_modules": "all-linear"}')
    run = {"micro_batch": 1, "gradient_checkpointing": False}
    new, gone_on = (a_plan("dpo", run=run, adapter=one) for one in ({}, {"from": str(tmp_path)}))
    weights = new.setting.adapter_weights(new.shape)
    for moment in new.memory.moments:
        assert gone_on.memory.at(moment) - new.memory.at(moment) == 4 * weights, moment
    assert not a_plan("orpo", run=run, adapter={"from": str(tmp_path)}).setting.copied
    assert a_plan("kto", model={"name": LLAMA}, gib=80, adapter={"method": "pissa"}).setting.copied


@pytest.mark.parametrize(("kind", "tied"), [("llama", False), ("qwen3", True)])
def test_a_score_stands_in_the_place_of_the_output_layer(kind, tied):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "tie_word_embeddings": tied}  # fmt: skip
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, **sizes, num_labels=1)
        model = get_peft_model(
            AutoModelForSequenceClassification.from_config(config),
            LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"),
        )
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    shape = read_shape({"model_type": kind, **sizes})
    values = {"model": {"name": "x", "dtype": "float32"}, "data": {"train": "x"}, "output_dir": "x"}
    recipe = Recipe.model_validate(values | {"adapter": {"rank": 4}})
    rows = Rows([64] * 4, 4, 64, 32, 0, "made up")
    setting, _ = setting_of(recipe, shape, rows, "cpu", by=METHODS["reward"])
    assert base_bytes(shape, setting) == 4 * frozen
    assert setting.adapter_weights(shape) + setting.whole == trained
    assert "loss" in plan_memory(shape, setting).moments


def test_orpos_likelihood_of_the_preferred_sequence_counts_its_prompt():
    shape = read_shape(facts.known_models()[LLAMA])
    plain = {"targets": shape.targets("all-linear"), "adapted_layers": shape.layers, "rank": 16, "micro_batch": 4}
    lengths = {"quantization": "nf4", "dtype": "bfloat16", "longest": 1000, "supervised": 100}
    tiles = Setting(**plain, **lengths)
    assert scored_tokens(tiles, 4000) == 400
    assert scored_tokens(replace(tiles, prompts_scored=True), 4000) == 2 * 1000 + 2 * 100
    assert METHODS["orpo"].prompts_scored


@pytest.mark.parametrize("method", [one for one in CONFIGS if one != "sft" and one not in TASKS])
def test_more_tokens_or_rows_never_plan_less_and_proposals_keep_to_what_the_method_can(method, tmp_path):
    run = {"gradient_checkpointing": False}
    sizes = [a_plan(method, length=n, run=run | {"micro_batch": 4}).memory.total for n in (64, 512, 2048, 8192)]
    assert sizes == sorted(sizes)
    by_rows = [a_plan(method, run=run | {"micro_batch": n}).memory.total for n in (2, 4, 8, 16)]
    assert by_rows == sorted(by_rows)
    tight = a_plan(method, gib=8, length=2048, run=run | {"micro_batch": 8})
    assert not tight.fits
    assert tight.proposals
    path = a_recipe(tmp_path, [], method, model={"name": LLAMA, "quantization": "nf4"})
    for proposal in tight.proposals:
        recipe = load_recipe(path, ["run.effective_batch=16", "run.micro_batch=8", *proposal.text().split()], method)
        assert recipe.run.micro_batch * METHODS[method].sequences == proposal.setting.micro_batch
        shape = tight.shape
        length = recipe.trainer["max_length"] if "trainer.max_length" in proposal.overrides else 2048
        if method == "grpo" and "trainer.max_completion_length" not in proposal.overrides:
            recipe = recipe.model_copy(update={"trainer": recipe.trainer | {"max_completion_length": 1024}})
        rows = some_rows(method, length, min(1024, length))
        checked = make_plan(recipe, shape, rows, machine.a_card(8), method=method)
        assert checked.fits, proposal.text()


def test_offload_is_refused_where_trls_config_has_none_and_not_passed_to_it(tmp_path):
    for method in CONFIGS.keys() - TASKS.keys():
        path = a_recipe(tmp_path, [], method, trainer={})
        offload = "run.gradient_checkpointing=offload"
        if method in ("orpo", "cpo", "grpo"):
            with pytest.raises(RecipeError, match=rf"is `offload`, which {method}\.py cannot\. Use auto"):
                load_recipe(path, [offload], method)
        else:
            load_recipe(path, [offload], method)


@pytest.mark.parametrize("path", PREFERENCES, ids=lambda path: path.stem)
def test_a_recipe_makes_its_trl_config(path):
    from lorasmith import hardware
    from lorasmith.runs.settings import make_config

    method = method_of(path)
    recipe = load_recipe(path, ["run.micro_batch=2", *NO_EVAL, "model.dtype=float32"], method)
    module, name = CONFIGS[method]
    kind = getattr(importlib.import_module(module), name)
    config = make_config(kind, recipe, hardware.find_hardware(use_cpu=True), method)
    assert config.learning_rate == recipe.trainer["learning_rate"]
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == recipe.run.effective_batch


def test_the_benchmark_leaves_out_what_is_missing_and_shows_its_table():
    benchmark = load_benchmark("preference_memory")
    assert {cell.method for cell in benchmark.cells()} == CONFIGS.keys() - TASKS.keys()
    done = {"label": "dpo, nf4", "predicted_gib": 1.1, "measured_gib": 1.0, "error": 0.1, "moment": "loss"}
    shown = benchmark.table({"cells": [done], "left_out": [{"label": "cpo", "why": "scripts/cpo.py is missing"}]})
    assert "| dpo, nf4 | loss | 1.100 | 1.000 | +10.0% |" in shown
    assert "left out: scripts/cpo.py is missing" in shown
    assert all({"prompt", "chosen", "rejected"} == row.keys() for row in benchmark.rows_of("dpo", 4, "train"))


@pytest.mark.slow
@pytest.mark.parametrize("method", [one for one in CONFIGS if one not in TASKS])
def test_a_runs_memory_is_within_5_percent_of_its_plan(method, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # whose programs import each other by name
    benchmark = load_benchmark("preference_memory")
    benchmark.make_base(tmp_path / "base")
    found = benchmark.in_a_process(benchmark.Cell(method), tmp_path)
    assert abs(found["error"]) <= 0.05, found
