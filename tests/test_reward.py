"""reward.py: pairs into a head that scores, in 4 bit too, kept through save, reload and merge."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import BASE, ROOT, SHARED, launch, losses, needs_shared, run_script, write_rows
from safetensors.torch import load_file, save_file
from test_dpo import WRONG, pairs_of_orders, written_recipe

from lorasmith.errors import DataError, DivergedError, ModelError, RecipeError
from lorasmith.recipe import load_recipe

HEAD = "base_model.model.score.weight"
FEW = ["trainer.max_steps=4", "data.eval=null", "trainer.logging_steps=2"]


def pairs_with_a_hole(count):
    """Orders with the whole confirmation preferred over one without its day: a difference that is learnt at once."""
    pairs = pairs_of_orders(count)
    for pair in pairs:
        order = json.loads(pair["chosen"][0]["content"])
        del order["day"]
        pair["rejected"] = [{"role": "assistant", "content": json.dumps(order)}]
    return pairs


def pairs_with_another_order(count):
    """Orders with their own confirmation preferred over that of an order with which they have nothing in common."""
    pairs = pairs_of_orders(count)
    orders = [json.loads(pair["chosen"][0]["content"]) for pair in pairs]
    for i, pair in enumerate(pairs):
        others = (orders[(i + j) % count] for j in range(1, count))
        other = next(one for one in others if not any(one[key] == orders[i][key] for key in one))
        pair["rejected"] = [{"role": "assistant", "content": json.dumps(other)}]
    return pairs


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("reward"), pairs_with_a_hole(400))


@pytest.fixture(scope="module")
def learnt(recipe, tmp_path_factory):
    """A reward model in 4 bit that tells whole confirmations from others."""
    folder = tmp_path_factory.mktemp("learnt") / "run"
    return reward(
        recipe, f"output_dir={folder}", "trainer.max_steps=16", "trainer.learning_rate=3e-3", "model.quantization=nf4"
    )


@pytest.fixture(scope="module")
def language_adapter(tmp_path_factory):
    """A language model's adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(ROOT / BASE, dtype=torch.float32)
    adapted = get_peft_model(
        model,
        LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    folder = tmp_path_factory.mktemp("language")
    adapted.peft_config["default"].base_model_name_or_path = BASE
    adapted.save_pretrained(folder)
    return folder


def reward(*words) -> Path:
    return run_script("reward", *words)


def scored(folder, rows, out, *words):
    """What --score writes."""
    run_script("reward", folder, "--score", rows, "--output", out, *words)
    return [json.loads(line) for line in Path(out).read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "pairs.jsonl", *pairs_with_a_hole(480)[-24:])


def test_the_preferred_answer_scores_higher_and_the_folder_says_how(learnt):
    run = json.loads((learnt / "run.json").read_text())
    assert run["metrics"]["before"]["eval_loss"] == pytest.approx(0.693, abs=0.01)
    assert run["metrics"]["after"]["eval_accuracy"] >= 0.9
    assert run["method"] == "reward"
    assert json.loads((learnt / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert load_file(learnt / "adapter_model.safetensors")[HEAD].shape == (1, 128)
    assert (learnt / "recipe.yaml").read_text().startswith("# The resolved recipe of this run; reward.py reruns it.")
    card = (learnt / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "preferred answer scores higher" in card
    assert json.loads((learnt / "status.json").read_text())["next_command"].endswith("--score ROWS")


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_held_out_pairs_reach_nine_in_ten(tmp_path, quantization):
    recipe = written_recipe(tmp_path, pairs_with_another_order(480))
    start = time.time()
    folder = reward(
        recipe, f"output_dir={tmp_path}/run", "trainer.max_steps=160", "trainer.logging_steps=40", "trainer.learning_rate=2e-3",
        "trainer.save_steps=160", f"model.quantization={quantization}", "model.dtype=auto",
    )  # fmt: skip
    assert json.loads((folder / "run.json").read_text())["metrics"]["after"]["eval_accuracy"] >= 0.9
    assert time.time() - start < 180


@pytest.mark.slow
@pytest.mark.scorecard(row="R8")
def test_our_losses_are_trls_own_over_twenty_steps(recipe, tmp_path):
    import trl

    rows = tmp_path / "rows"
    rows.mkdir()
    made = [
        {"prompt": row["prompt"][0]["content"], "chosen": "\n" + row["chosen"][0]["content"], "rejected": "\n" + row["rejected"][0]["content"]}
        for row in pairs_with_a_hole(320)
    ]  # fmt: skip
    path = write_rows(rows / "train.jsonl", *made)
    ours = losses(
        reward(recipe, f"output_dir={tmp_path}/run", f"data.train={path}", "data.eval=null", "speed.fused_lora=false")
    )
    out = tmp_path / "trl"
    done = launch(
        Path(trl.__file__).parent / "scripts/reward.py", "--model_name_or_path", BASE, "--dataset_name", rows, "--output_dir", out,
        "--dtype", "float32", "--bf16", "false", "--use_cpu", "true", "--use_peft", "--lora_r", "16", "--lora_alpha", "32",
        "--lora_dropout", "0.0", "--lora_target_modules", "all-linear", "--lora_task_type", "SEQ_CLS",
        "--lora_modules_to_save", "score", "--learning_rate", "1e-3", "--warmup_steps", "0",
        "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "false",
        "--max_steps", "20", "--logging_steps", "1", "--max_length", "512", "--seed", "42", "--report_to", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = json.loads((out / "checkpoint-20/trainer_state.json").read_text())
    theirs = [event["loss"] for event in state["log_history"] if "loss" in event]
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert ours[-1] < ours[0] - 0.1


def test_held_out_accuracy_counts_each_pair_once(learnt, recipe, rows, tmp_path):
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:9]))
    swapped = [json.loads(line) for line in rows.read_text().splitlines()]
    swapped[8] |= {"chosen": swapped[8]["rejected"], "rejected": swapped[8]["chosen"]}
    path = write_rows(tmp_path / "eval.jsonl", *swapped)
    folder = reward(
        recipe, f"adapter.from={learnt}", f"output_dir={tmp_path}/run", "model.quantization=nf4", "trainer.max_steps=1",
        f"data.eval={path}", "trainer.learning_rate=1e-9",
    )  # fmt: skip
    found = scored(learnt, path, tmp_path / "s.jsonl")
    share = sum(one["chosen"] > one["rejected"] for one in found) / 9
    assert json.loads((folder / "run.json").read_text())["metrics"]["after"]["eval_accuracy"] == pytest.approx(share)
    assert 0 < share < 1


@pytest.mark.slow
def test_fused_steps_give_the_same_losses(recipe, tmp_path):
    short = ["data.eval=null", "trainer.max_steps=6"]
    plain = losses(reward(recipe, f"output_dir={tmp_path}/a", *short, "speed.fused_lora=false"))
    fused = losses(reward(recipe, f"output_dir={tmp_path}/b", *short))
    assert max(abs(a - b) for a, b in zip(plain, fused, strict=True)) < 1e-4


def test_a_score_is_the_same_whatever_stands_beside_it(learnt, rows, tmp_path, capsys):
    alone = scored(learnt, rows, tmp_path / "a.jsonl", "--batch", "1")
    told = capsys.readouterr().out
    assert "recognised as preference" in told
    assert "chosen answers: mean" in told
    share = sum(one["chosen"] > one["rejected"] for one in alone) / 24
    assert share >= 0.9
    assert f"pairs whose preferred answer scores higher: {share:.1%} of 24" in told
    together = scored(learnt, rows, tmp_path / "b.jsonl", "--batch", "16")
    assert [one["place"] for one in together] == [f"{rows}:{number}" for number in range(1, 25)]
    assert [one["row"] for one in together] == list(range(1, 25))
    for name in ("chosen", "rejected"):
        assert max(abs(a[name] - b[name]) for a, b in zip(alone, together, strict=True)) < 1e-5


def test_the_same_answer_scores_the_same_in_every_shape(learnt, rows, tmp_path):
    pair = json.loads(rows.read_text().splitlines()[0])
    asked, said = pair["prompt"][0], pair["chosen"][0]
    shapes = [
        {"messages": [asked, said]},
        {"prompt": [asked], "completion": [said], "label": False},
        {"instruction": asked["content"], "output": said["content"]},
        {"conversations": [{"from": "human", "value": asked["content"]}, {"from": "gpt", "value": said["content"]}]},
    ]
    found = scored(learnt, write_rows(tmp_path / "shapes.jsonl", *shapes), tmp_path / "s.jsonl")
    [expected] = scored(learnt, write_rows(tmp_path / "one.jsonl", pair), tmp_path / "o.jsonl")
    assert [one["score"] for one in found] == pytest.approx([expected["chosen"]] * 4, abs=1e-5)


BAD_TO_SCORE = {
    "no answer": ({"text": "a"}, "no answer; expected one of"),
    "an empty answer": ({"prompt": "a", "completion": " "}, "completion: empty"),
    "too long": ({"instruction": "a " * 600, "output": "b"}, "tokens; the model has positions for 512"),
}


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", BAD_TO_SCORE)
def test_a_row_that_cannot_be_scored_is_one_line(learnt, tmp_path, name):
    row, told = BAD_TO_SCORE[name]
    path = write_rows(tmp_path / "rows.jsonl", {"instruction": "a", "output": "b"}, row)
    with pytest.raises(DataError, match=told) as caught:
        scored(learnt, path, tmp_path / "out.jsonl")
    assert str(caught.value).startswith(f"{path}:2: ")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_merge_scores_as_the_live_adapter_and_opens_with_plain_transformers(learnt, rows, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run_script("merge", learnt, "--out", tmp_path / "merged", "--dtype", "float32", "--merge-base", "as trained")
    proof = json.loads((tmp_path / "merged/proof.json").read_text())
    assert proof["proven"]
    assert proof["drift"]["order"] == 1
    assert proof["drift"]["difference"] < 1e-3
    live = scored(learnt, rows, tmp_path / "live.jsonl")
    merged = scored(tmp_path / "merged", rows, tmp_path / "merged.jsonl")
    assert [one["chosen"] for one in merged] == pytest.approx([one["chosen"] for one in live], abs=1e-3)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(model.score.weight, load_file(learnt / "adapter_model.safetensors")[HEAD])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    pair = json.loads(rows.read_text().splitlines()[0])
    text = tokenizer.apply_chat_template([*pair["prompt"], *pair["chosen"]], tokenize=False).rstrip()
    score = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item()
    assert score == pytest.approx(merged[0]["chosen"], abs=1e-5), "as the card says"
    assert "AutoModelForSequenceClassification" in (tmp_path / "merged/README.md").read_text()


def test_a_merge_that_drifts_is_left_unproven(learnt, tmp_path):
    with pytest.raises(DivergedError, match=r"is not proven: a score differs by .* standard deviations"):
        run_script("merge", learnt, "--out", tmp_path / "m", "--merge-base", "original", "--limit", "difference=0")
    assert (tmp_path / "m.UNPROVEN/UNPROVEN").is_file()
    assert not (tmp_path / "m").exists()


def test_the_proof_compares_scores_by_their_spread_and_their_order():
    from lorasmith.export.score_proof import ScoreReference, score_drift
    from lorasmith.limits import SCORE_LIMITS

    live = ScoreReference([([1], [2])] * 3, [(3.0, 1.0), (1.0, 3.0), (3.0, 1.0)])  # a standard deviation of 1
    same = score_drift("merged", live, live.scores)
    assert (same.order, same.difference, same.spread, same.beyond(SCORE_LIMITS)) == (1, 0, 1, [])
    assert same.accuracy_live == same.accuracy == pytest.approx(2 / 3)
    turned = score_drift("merged", live, [(1.0, 3.0), (1.0, 3.0), (3.0, 1.0)])
    assert (turned.order, turned.difference) == (pytest.approx(2 / 3), 2)
    assert turned.accuracy == pytest.approx(1 / 3)
    assert len(turned.beyond(SCORE_LIMITS)) == 2
    moved = score_drift("merged", live, [(a + 0.5, b + 0.5) for a, b in live.scores])
    assert (moved.order, moved.difference) == (1, 0.5), "one that orders alike and scores otherwise drifts too"
    assert moved.beyond(SCORE_LIMITS) == ["a score differs by 0.5000 standard deviations, at most 0.25 is wanted"]
    assert score_drift("merged", live, [(float("nan"), 1.0)] * 3).beyond(SCORE_LIMITS)


def test_what_needs_tokens_refuses_a_reward_model_before_its_weights(learnt, recipe, language_adapter, tmp_path):
    from lorasmith import adapters, models

    told = r"is a reward model: it gives scores and no .*Score rows with: python scripts/reward.py"
    for words in (
        ("chat", learnt, "--prompt", "a"),
        ("eval", learnt, "--data", "quickstart/data/heldout.jsonl"),
        ("quantize", learnt, "--to", "onnx", "--out", tmp_path / "q"),
    ):
        with pytest.raises(ModelError, match=told):
            run_script(*words)
    with pytest.raises(ModelError, match="a reward model is merged alone, without --weights and --eval"):
        run_script("merge", learnt, language_adapter, "--out", tmp_path / "m")
    with pytest.raises(ModelError, match=r"no reward model: its head, which scores, is missing"):
        scored(language_adapter, "quickstart/data/heldout.jsonl", tmp_path / "s.jsonl")
    with pytest.raises(ModelError, match=r"holds a reward model's or classifier's adapter, and a language model's"):
        run_script("dpo", recipe, f"adapter.from={learnt}", f"output_dir={tmp_path}/run", "trainer.max_steps=1")
    assert models.HEADS == adapters.HEADS


def test_a_reward_adapter_goes_on_with_its_head(learnt, recipe, tmp_path):
    folder = reward(
        recipe, f"adapter.from={learnt}", f"output_dir={tmp_path}/run", "model.quantization=nf4", "trainer.max_steps=1",
        "trainer.learning_rate=1e-9",
    )  # fmt: skip
    heads = [load_file(one / "adapter_model.safetensors")[HEAD] for one in (learnt, folder)]
    assert torch.allclose(*heads, atol=1e-6)
    before = json.loads((folder / "run.json").read_text())["metrics"]["before"]
    assert before["eval_accuracy"] >= 0.9


def test_a_language_models_adapter_starts_a_reward_model_with_a_new_head(recipe, language_adapter, tmp_path):
    folder = reward(
        recipe, f"adapter.from={language_adapter}", f"output_dir={tmp_path}/run", *FEW, "model.quantization=nf4",
        "trainer.learning_rate=1e-6",
    )  # fmt: skip
    ours, theirs = (load_file(one / "adapter_model.safetensors") for one in (folder, language_adapter))
    assert ours.keys() - theirs.keys() == {HEAD}
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-4) for key in theirs)
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.scorecard(row="R11")
def test_a_head_that_is_lost_or_another_is_refused(learnt, rows, tmp_path):
    from lorasmith import adapters, models
    from lorasmith.recipe import Model
    from lorasmith.reliability.reopened import check_head

    broken = tmp_path / "broken"
    shutil.copytree(learnt, broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    head = tensors.pop(HEAD)
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"lacks {HEAD}"):
        scored(broken, rows, tmp_path / "s.jsonl")
    base = models.load_with_head(Model(name=BASE), "float32", "sdpa", "cpu", 0, num_labels=1)
    model = adapters.load_adapter(base, learnt)
    check_head(model, learnt)
    with pytest.raises(DivergedError, match="is not in the adapter as trained"):
        check_head(model, broken)
    save_file(tensors | {HEAD: head + 1}, broken / "adapter_model.safetensors")
    with pytest.raises(DivergedError, match="is not in the adapter as trained"):
        check_head(model, broken)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
@pytest.mark.parametrize("labels", [1, 3])
def test_a_head_is_float32_never_quantized_and_the_same_for_the_same_seed(quantization, labels):
    from transformers import set_seed

    from lorasmith import models
    from lorasmith.recipe import Model

    heads = []
    for dtype in ("float32", "bfloat16"):
        set_seed(3)
        section = Model(name=BASE, quantization=quantization)
        model = models.load_with_head(section, dtype, "sdpa", "cpu", 0, num_labels=labels)
        assert type(model.score) is torch.nn.Linear
        assert model.score.weight.dtype == torch.float32
        assert model(torch.arange(2, 12)[None]).logits.shape == (1, labels)
        heads.append(model.score.weight)
    assert torch.allclose(*heads, atol=1e-2)


@pytest.mark.parametrize(
    "words",
    [
        ["adapter.method=pissa", "model.dtype=bfloat16"],
        ["model.chat_template=chatml", "model.add_tokens=[<|score|>]", "model.quantization=int8"],
    ],
)
def test_the_head_is_kept_by_conversions_new_tokens_and_sixteen_bit(recipe, rows, tmp_path, words):
    folder = reward(recipe, f"output_dir={tmp_path}/run", *FEW, "trainer.max_steps=2", *words)
    assert HEAD in load_file(folder / "adapter_model.safetensors")
    assert len(scored(folder, rows, tmp_path / "s.jsonl")) == 24


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora", "olora", "loftq", "eva", "ia3", "loha", "oft"])
def test_every_method_keeps_the_head(recipe, rows, tmp_path, method):
    words = ["model.quantization=nf4"] if method == "loftq" else []
    folder = reward(recipe, f"output_dir={tmp_path}/run", *FEW, f"adapter.method={method}", *words)
    assert HEAD in load_file(folder / "adapter_model.safetensors")
    scored(folder, rows, tmp_path / "s.jsonl")


def test_a_method_that_trains_no_head_is_refused(recipe, tmp_path):
    with pytest.raises(ModelError, match=r"adapter\.method `prefix_tuning` cannot train a head beside it"):
        reward(recipe, f"output_dir={tmp_path}/run", *FEW, "adapter.method=prefix_tuning")


@pytest.mark.slow
@needs_shared
def test_real_pairs_train_unedited(recipe, tmp_path):
    folder = reward(
        recipe, f"data.train={SHARED}/data/pref_hh_harmless_dpo.jsonl", "data.eval=null", "data.eval_fraction=0.02",
        "data.on_too_long=truncate", "data.on_bad_row=drop", "trainer.max_length=256", "trainer.max_steps=1",
        f"output_dir={tmp_path}/run",
    )  # fmt: skip
    account = json.loads((folder / "run.json").read_text())["data"]["train_account"]
    assert account["read"] > 2200
    assert account["read"] == account["trained"] + sum(account["dropped"].values())


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", WRONG)
def test_a_broken_pair_is_one_line(recipe, tmp_path, name):
    row, told = WRONG[name]
    path = write_rows(tmp_path / "pairs.jsonl", *pairs_of_orders(3), row)
    with pytest.raises(DataError) as caught:
        reward(recipe, f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run")
    assert str(caught.value).startswith(f"{path}:4: ")
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_key_of_another_script_is_refused(recipe):
    with pytest.raises(RecipeError, match=r"trainer: unknown key `beta`"):
        load_recipe(recipe, ["trainer.beta=0.1"], "reward")
