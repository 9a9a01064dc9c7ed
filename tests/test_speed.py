"""Each lever on and off: the same losses and gradients, for real shapes of models and 16, 8 and 4 bit."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.modeling_layers import GradientCheckpointingLayer

from lorasmith import models
from lorasmith.recipe import Model, Recipe
from lorasmith.speed import batches, levers
from lorasmith.speed.attention import NAME, use_row_attention
from lorasmith.speed.batches import ROWS, TOKENS, FlatCollator
from lorasmith.speed.frozen import reuse_frozen_blocks
from lorasmith.speed.loss import supervised_loss
from lorasmith.speed.packing import best_fit
from lorasmith.speed.trainer import logit_scale

KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "granite": {"logits_scaling": 3.0},
}
BITS = ("none", "bfloat16", "int8", "nf4")
# Most that a loss, and the gradients of all adapter weights together, may differ by, relative. In bfloat16 both ways
# round, in other places; with float32 arithmetic only the order of sums differs.
BOUNDS = {"none": (1e-6, 1e-4), "nf4": (1e-6, 1e-4), "int8": (1e-6, 1e-4), "bfloat16": (3e-3, 6e-2)}
ALL = {"padding_free": True, "shared_prompts": True, "chunked_loss": True, "fused_lora": True}


def recipe_with(**speed):
    return Recipe.model_validate(
        {
            "model": {"name": "made up"},
            "data": {"train": "made up"},
            "output_dir": "nowhere",
            "speed": dict.fromkeys(ALL, False) | speed,
        }
    )


def adapted(folder, bits, **options):
    """A base with an adapter that acts."""
    quantization, dtype = ("none", bits) if bits == "bfloat16" else (bits, "float32")
    section = Model.model_validate({"name": str(folder), "quantization": quantization})
    base = models.load_base_model(section, dtype, "sdpa", "cpu")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **{"target_modules": "all-linear"} | options)
    model = get_peft_model(base, config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


def some_rows():
    """Rows of unlike length, three of which begin alike, with untrained tokens first."""
    draw = random.Random(0)
    common = draw.choices(range(3, 900), k=24)
    rows = []
    for begins, own in ((common, 9), (common, 5), ([], 17), (common, 12), ([], 4)):
        ids = begins + draw.choices(range(3, 900), k=own)
        trained = len(begins) + 3 if begins else 1
        rows.append({"input_ids": ids, "labels": [-100] * trained + ids[trained:]})
    return rows


def padded(rows):
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([row[name] + [pad] * (longest - len(row[name])) for row in rows])
        for name, pad in fill.items()
    }
    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return batch | {"attention_mask": torch.tensor(mask)}


def loss_and_gradients(model, batch, chunked):
    """The summed loss of a batch, and the gradients of the adapter as one vector."""
    batch = {key: value for key, value in batch.items() if key != TOKENS}
    labels, base = batch.pop("labels"), model.get_base_model()
    native = base.dtype == torch.bfloat16 and "forward" in vars(
        next(m for m in model.modules() if hasattr(m, "lora_A"))
    )
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=base.dtype == torch.bfloat16 and not native):
        hidden = base.base_model(**batch, use_cache=False).last_hidden_state
        head, scale = base.get_output_embeddings(), logit_scale(base.config)
        if chunked:
            total = supervised_loss(hidden, labels, head, scale).total
        else:
            logits = (head(hidden)[:, :-1] * scale).float()
            total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    total.backward()
    return total.item(), torch.cat([w.grad.float().flatten() for w in model.parameters() if w.requires_grad])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_lever_and_all_together_give_the_losses_and_gradients_of_none(kind, bits, small_model):
    folder = small_model(kind, **KINDS[kind])
    rows = some_rows()
    loss, gradients = loss_and_gradients(adapted(folder, bits), padded(rows), chunked=False)
    loss_bound, gradient_bound = BOUNDS[bits]
    for speed in (*({name: True} for name in ALL if name != "shared_prompts"), ALL):
        model, recipe = adapted(folder, bits), recipe_with(**speed)
        collate = levers.make_batches(model, recipe)
        assert (collate is not None) == recipe.speed.padding_free
        said = levers.fuse(model, recipe)
        mlps = 0 if kind == "gpt2" else 2
        assert bool(said) == recipe.speed.fused_lora
        assert not said or f" {mlps} gated MLPs" in said[0]
        batch = collate(rows) if collate else padded(rows)
        if speed == ALL:
            assert len(batch[ROWS]) == len(rows) + 1  # what three begin with lies there once
        other, others = loss_and_gradients(model, batch, recipe.speed.chunked_loss)
        assert other == pytest.approx(loss, rel=loss_bound), speed
        assert (others - gradients).norm() < gradient_bound * gradients.norm(), speed


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_layer_that_carries_a_plain_lora_is_fused_and_no_other(kind, small_model):
    from peft.tuners.lora import LoraLayer

    model = adapted(small_model(kind, **KINDS[kind]), "none")
    levers.fuse(model, recipe_with(fused_lora=True))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    assert layers
    assert all("forward" in vars(layer) for layer in layers)
    others = (
        LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"),
        LoraConfig(r=4, use_dora=True, target_modules="all-linear"),
        LoraConfig(r=4, lora_bias=True, target_modules="all-linear"),
    )
    for config in others:
        section = Model.model_validate({"name": str(small_model(kind, **KINDS[kind]))})
        other = get_peft_model(models.load_base_model(section, "float32", "sdpa", "cpu"), config)
        assert levers.fuse(other, recipe_with(fused_lora=True)) == []


def test_a_switched_off_or_merged_adapter_is_left_to_peft(small_model):
    model = adapted(small_model("llama"), "none")
    ids = torch.arange(3, 20)[None]
    with model.disable_adapter():
        base = model(ids).logits
    levers.fuse(model, recipe_with(fused_lora=True))
    live = model(ids).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, base, rtol=1e-5, atol=1e-6)
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, live, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(live, base, atol=1e-3)


def test_autocast_is_left_out_only_where_all_that_is_trained_is_fused(small_model):
    from types import SimpleNamespace

    config = SimpleNamespace(bf16=True, mixed_precision="bf16")
    model = adapted(small_model("llama"), "bfloat16")
    levers.compute_natively(config, model)
    assert config.bf16  # nothing is fused yet
    levers.fuse(model, recipe_with(fused_lora=True))
    model.get_base_model().model.norm.weight.requires_grad_(True)
    levers.compute_natively(config, model)
    assert config.bf16  # a norm is trained too
    model.get_base_model().model.norm.weight.requires_grad_(False)
    levers.compute_natively(config, model)
    assert (config.bf16, config.mixed_precision) == (False, "no")


def test_the_loss_counts_top_choices_and_takes_a_batch_without_trained_tokens():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden = torch.randn(2, 7, 8, requires_grad=True)
    labels = torch.randint(0, 50, (2, 7))
    best = (hidden @ head.weight.T).argmax(-1)
    labels[0, 1:4] = best[0, :3]
    scored = supervised_loss(hidden, labels, head, 1.0)
    assert scored.tokens == 12
    assert scored.correct == (best[:, :-1] == labels[:, 1:]).sum()
    none = supervised_loss(hidden, torch.full_like(labels, -100), head, 1.0)
    none.total.backward()
    assert (none.total.item(), none.tokens.item(), hidden.grad.abs().sum().item()) == (0, 0, 0)


def test_the_loss_is_the_same_whatever_the_size_of_its_chunks(monkeypatch):
    from lorasmith.speed import loss

    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50).requires_grad_(False)
    labels, found = torch.randint(0, 50, (1, 33)), []
    for rows in (1, 7, 100):
        monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 4 * 50 * rows)
        hidden = torch.linspace(-3, 3, 33 * 8).view(1, 33, 8).requires_grad_(True)
        scored = supervised_loss(hidden, labels, head, 0.5)
        scored.total.backward()
        found.append((scored.total.item(), hidden.grad))
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias)[0, :-1] * 0.5
    expected = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum").item()
    for total, gradient in found:
        assert total == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(gradient, found[0][1])


def test_a_flat_batch_gives_its_rows_back_and_can_be_halved():
    rows = some_rows()
    for share in (False, True):
        batch = FlatCollator(share)(rows)
        assert batch[TOKENS] == sum(len(row["input_ids"]) for row in rows)
        found = [row["input_ids"].tolist() for row in batches.rows_of(batch)]
        assert sorted(found) == sorted(row["input_ids"] for row in rows)
        halves = batches.halves(batch)
        again = [row["input_ids"].tolist() for half in halves for row in batches.rows_of(half)]
        assert sorted(again) == sorted(found)
        trained = sum(int((half["labels"] != -100).sum()) for half in halves)
        assert trained == int((batch["labels"] != -100).sum())
    assert FlatCollator(True)(rows)["input_ids"].numel() == FlatCollator(False)(rows)["input_ids"].numel() - 2 * 24
    assert len(batches.halves(FlatCollator(True)(rows[:1]))) == 1


@pytest.mark.parametrize("share", [False, True])
def test_a_flat_batch_trains_what_its_rows_train_alone(share):
    ids = [list(range(start, start + 9)) for start in (10, 30, 50)]
    rows = [{"input_ids": one, "labels": one} for one in ids]  # all tokens trained, as in continued pretraining
    assert int((FlatCollator(share)(rows)["labels"][:, 1:] != -100).sum()) == 3 * 8


def test_nothing_that_is_trained_is_shared():
    ids = list(range(3, 40))
    rows = [{"input_ids": ids, "labels": [-100] * 20 + ids[20:]}, {"input_ids": ids, "labels": [-100] * 30 + ids[30:]}]
    batch = FlatCollator(True)(rows)
    assert batch[ROWS][0].end == 19  # the token before the first trained one predicts it
    assert int((batch["labels"] != -100).sum()) == 17 + 7
    all_trained = [{"input_ids": ids, "labels": ids}] * 2
    assert len(FlatCollator(True)(all_trained)[ROWS]) == 2


UPPER = {
    "llama": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc", "c_proj"]},
}


@pytest.mark.parametrize("kind", UPPER)
def test_what_frozen_blocks_give_is_computed_once_and_changes_nothing(kind, small_model):
    sizes = {"n_layer": 4} if kind == "gpt2" else {"num_hidden_layers": 4}
    folder = small_model(kind, **KINDS[kind], **sizes)
    rows = [
        *some_rows(),
        {"input_ids": list(range(100, 117)), "labels": [-100, *range(101, 117)]},
    ]  # as long as another
    expected = loss_and_gradients(
        adapted(folder, "none", **UPPER[kind], layers_to_transform=[2, 3]), padded(rows), True
    )
    model = adapted(folder, "none", **UPPER[kind], layers_to_transform=[2, 3])
    collate = levers.make_batches(model, recipe_with(padding_free=True, shared_prompts=True))
    kept, said = reuse_frozen_blocks(model, sum(len(row["input_ids"]) for row in rows), 1 << 30)
    assert "the first 2 of 4 blocks carry no adapter" in said
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    ran = []
    blocks[0].register_forward_hook(lambda *_: ran.append(1) if kept._given is None else None)
    for batch in (rows[:3], rows[3:], rows):
        found = loss_and_gradients(model, collate(batch), True)
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert (found[1] - expected[1]).norm() < 1e-4 * expected[1].norm()
    assert len(ran) == len(rows)  # each row once, whatever batch it came in
    with torch.no_grad():
        ids = torch.tensor([rows[0]["input_ids"]])
        assert model(ids).logits.shape[1] == ids.shape[1]  # evaluation goes its own way


def test_frozen_blocks_are_kept_only_where_it_holds(small_model):
    folder = small_model("llama")
    assert reuse_frozen_blocks(adapted(folder, "none"), 100, 1 << 30) == (None, "")
    upper = adapted(folder, "none", **UPPER["llama"], layers_to_transform=[1])
    kept, said = reuse_frozen_blocks(upper, 1 << 20, 1000)
    assert kept is None
    assert "too large to be kept" in said
    upper.get_base_model().model.embed_tokens.weight.requires_grad_(True)
    assert reuse_frozen_blocks(upper, 100, 1 << 30) == (None, "")
    dropping = adapted(small_model("gpt2", n_layer=3), "none", **UPPER["gpt2"], layers_to_transform=[2])
    assert reuse_frozen_blocks(dropping, 100, 1 << 30) == (None, "")


def test_packing_is_best_fit_over_all_rows():
    draw = random.Random(0)
    lengths = [draw.randint(1, 100) for _ in range(3000)]
    packs = best_fit(lengths, 128)
    assert sorted(row for pack in packs for row in pack) == list(range(3000))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 128
    assert len(packs) < 1.02 * sum(lengths) / 128
    assert best_fit([5, 5, 5], 5) == [[0], [1], [2]]
    assert best_fit([], 5) == []


@pytest.mark.scorecard(row="R8")
@pytest.mark.parametrize("attention", ["sdpa", "eager", NAME])
@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "smollm3"]
)
def test_rows_that_see_each_other_are_noticed(kind, attention, small_model):
    """The judge is independent: each row alone, under transformers' own attention, gives the states that it must have."""
    section = Model(name=str(small_model(kind, **KINDS.get(kind, {}))))
    if attention != "eager" and not models.base_facts(section).runs_on_sdpa:
        pytest.skip("transformers has no sdpa for this architecture")
    model = models.load_base_model(section, "float32", "eager", "cpu").eval()
    rows = [
        {"input_ids": list(range(2, 18)), "labels": [-100] * 16},
        {"input_ids": list(range(30, 41)), "labels": [-100] * 11},
    ]
    with torch.no_grad():
        alone = model.base_model(torch.tensor([rows[1]["input_ids"]])).last_hidden_state[0]
        use_row_attention(model) if attention == NAME else model.set_attn_implementation(attention)
        batch = FlatCollator(False)(rows)
        inputs = {key: value for key, value in batch.items() if key not in ("labels", TOKENS)}
        beside = model.base_model(**inputs, use_cache=False).last_hidden_state[0, 16:]
    apart = ((beside - alone).norm() / alone.norm()).item() < 1e-5
    assert (levers.rows_differ(model) == "") == apart
    assert apart or attention != NAME


def test_attention_that_would_need_a_mask_of_all_rows_gets_padded_ones(small_model):
    model = adapted(small_model("llama"), "none")
    model.get_base_model().set_attn_implementation("eager")
    assert levers.make_batches(model, recipe_with(padding_free=True)) is None
    packing = recipe_with(padding_free=True).model_copy(update={"trainer": {"packing": True}})
    assert levers.make_batches(model, packing) is not None


def test_a_model_whose_rows_see_each_other_is_padded_or_refused(small_model, monkeypatch, capsys):
    from lorasmith.errors import ModelError

    model = adapted(small_model("llama"), "none")
    inner = model.get_base_model().model
    forward = inner.forward

    def without_borders(**given):
        kept = {key: given[key] for key in ("input_ids", "attention_mask") if key in given}
        return forward(**kept)

    monkeypatch.setattr(inner, "forward", without_borders)
    assert levers.make_batches(model, recipe_with(padding_free=True)) is None
    assert "batches: padded" in capsys.readouterr().out
    assert model.config._attn_implementation == "sdpa"
    packing = recipe_with(padding_free=True).model_copy(update={"trainer": {"packing": True}})
    with pytest.raises(ModelError, match="packed rows see each other"):
        levers.make_batches(model, packing)
