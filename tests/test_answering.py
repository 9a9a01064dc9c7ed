"""Greedy answers: those of transformers' generate on each row alone, whatever leaves and joins the batch."""

import numpy as np
import pytest
import torch
from conftest import BASE

from lorasmith.evaluation import answering
from lorasmith.evaluation.answering import answers, steady
from lorasmith.evaluation.scores import losses_as_read
from lorasmith.models import load_base_model, load_tokenizer
from lorasmith.recipe import Model

NEW = 12


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Model(name=BASE))[0]


def load(folder) -> torch.nn.Module:
    return load_base_model(Model(name=str(folder)), "float32", "sdpa", "cpu")


def prompts_of(count: int, shared: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(3)
    begin = [int(i) for i in rng.integers(3, 900, shared)]
    return [begin + [int(i) for i in rng.integers(3, 900, int(rng.integers(2, 40)))] for _ in range(count)]


def alone(model, tokenizer, prompt: list[int], budget: int = NEW) -> str:
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            max_new_tokens=budget,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)


@pytest.mark.parametrize("shared", [0, 24])
@pytest.mark.parametrize("batch", [1, 4, 13])
def test_answers_are_those_of_each_row_alone(tokenizer, batch, shared):
    model = load(BASE)
    prompts = prompts_of(13, shared)
    found = dict(answers(model, tokenizer, prompts, NEW, batch))
    assert [found[i] for i in range(13)] == [alone(model, tokenizer, prompt) for prompt in prompts]


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma"])
def test_other_architectures_answer_as_alone_too(small_model, tokenizer, kind):
    model = load(small_model(kind))
    assert steady(model)
    prompts = prompts_of(7)
    found = dict(answers(model, tokenizer, prompts, NEW, 3))
    assert [found[i] for i in range(7)] == [alone(model, tokenizer, prompt) for prompt in prompts]


def test_attention_without_a_kernel_of_its_own_sees_the_same(small_model, tokenizer):
    model = load_base_model(Model(name=str(small_model("qwen3"))), "float32", "eager", "cpu")
    assert steady(model)
    prompts = prompts_of(7)
    found = dict(answers(model, tokenizer, prompts, NEW, 3))
    assert [found[i] for i in range(7)] == [alone(model, tokenizer, prompt) for prompt in prompts]


def test_what_is_no_plain_cache_or_no_likeliest_token_is_left_to_transformers(small_model, tokenizer):
    sliding = load(small_model("mistral", sliding_window=8))
    assert not steady(sliding)
    prompts = prompts_of(5)
    found = dict(answers(sliding, tokenizer, prompts, NEW, 1))
    assert [found[i] for i in range(5)] == [alone(sliding, tokenizer, prompt) for prompt in prompts]
    model = load(small_model("qwen3"))
    model.generation_config.repetition_penalty = 1.3
    assert not steady(model)
    found = dict(answers(model, tokenizer, prompts, NEW, 1))
    assert [found[i] for i in range(5)] == [alone(model, tokenizer, prompt) for prompt in prompts]


def test_an_answer_ends_where_the_positions_do(small_model, tokenizer):
    model = load(small_model("gpt2", n_positions=32))
    found = dict(answers(model, tokenizer, [[5] * 30, [5] * 3], 40, 2))
    assert len(tokenizer(found[0])["input_ids"]) <= 3
    assert found[1] == alone(model, tokenizer, [5] * 3, 29)


def test_a_full_memory_halves_the_batch_and_loses_no_answer(tokenizer, monkeypatch):
    """The model's own forward is what runs out: a real error of torch's, raised for more than two rows."""
    model = load(BASE)
    prompts = prompts_of(6)
    expected = dict(answers(model, tokenizer, prompts, NEW, 1))

    def refuse(module, args, kwargs):
        if kwargs["input_ids"].shape[0] > 2:
            raise torch.OutOfMemoryError("too many rows")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert dict(answers(model, tokenizer, prompts, NEW, 6)) == expected


def test_a_cache_has_room_and_gives_what_was_put_in():
    layer = answering.RoomyLayer()
    parts = [torch.randn(2, 3, width, 4) for width in (5, 1, 1, 70, 1)]
    for part in parts:
        keys, values = layer.update(part, -part)
    assert torch.equal(keys, torch.cat(parts, 2))
    assert torch.equal(values, -torch.cat(parts, 2))


def test_losses_come_batch_by_batch_and_do_not_depend_on_the_batch():
    model = load(BASE)
    rows = [(ids, [-100, *ids[1:]]) for ids in prompts_of(9)]
    one = dict(losses_as_read(model, rows, 0, 1))
    auto = dict(losses_as_read(model, rows, 0))
    assert one.keys() == auto.keys()
    assert all(one[i].tokens == auto[i].tokens == len(rows[i][0]) - 1 for i in one)
    assert [one[i].nats for i in one] == pytest.approx([auto[i].nats for i in one], rel=1e-4)
