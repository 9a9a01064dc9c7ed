"""Answers without padding: each token's log-probability stands where trl looks for it, and is that of its row alone."""

import random
from array import array

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_speed import ALL, adapted, recipe_with
from transformers import AutoModelForCausalLM

from lorasmith.data.judged_tokens import JudgedTokens
from lorasmith.data.pair_tokens import PairTokens
from lorasmith.data.prepare_judged import judged_as_dataset
from lorasmith.data.prepare_pairs import PreparedPairs
from lorasmith.runs.planning import rows_of
from lorasmith.speed import levers
from lorasmith.speed.answers import ASKED, LAYOUT, LaidOut, answering, give_answers, lay_out
from lorasmith.speed.batches import ROWS

PAD = 0


def some_pairs():
    """Prompts with two answers: a long prompt, a short one, and answers that begin alike, one going on further."""
    draw = random.Random(0)

    def some(count):
        return draw.choices(range(3, 900), k=count)

    alike = some(4)
    return [
        (some(24), [5, *some(4)], [6, *some(8)]),
        (some(3), [5, *some(6)], [6, *some(2)]),
        (some(20), alike, [*alike, *some(3)]),
    ]


def padded_answers(pairs):
    """The preferred answers behind their prompts, then the others, filled up on the right as trl does."""
    rows = [(pair[0], pair[side]) for side in (1, 2) for pair in pairs]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    batch = torch.zeros(3, len(rows), width, dtype=torch.long)
    for at, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        batch[0, at, :end] = torch.tensor([*prompt, *answer])
        batch[1, at, :end] = 1
        batch[2, at, len(prompt) : end] = 1
    return batch.unbind(0)


@torch.no_grad()
def likelihoods(model, ids):
    """Log-probability of each token of one row but its first, (tokens - 1,)."""
    spoken = model(torch.as_tensor(ids)[None], use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return spoken.gather(1, torch.as_tensor(ids)[1:, None])[:, 0].float()


@pytest.mark.parametrize("share", [True, False])
def test_each_answer_is_as_likely_as_in_its_row_alone(small_model, share):
    model = adapted(small_model("llama"), "none")
    ids, attended, answers = padded_answers(some_pairs())
    expected = torch.zeros(len(ids), ids.shape[1] - 1)
    for row, size in enumerate(attended.sum(1).tolist()):
        expected[row, : size - 1] = likelihoods(model, ids[row, :size])
    levers.make_batches(model, recipe_with(**ALL))
    give_answers(model.get_base_model())
    groups = [[row, row + 3] for row in range(3)] if share else [[row] for row in range(6)]
    layout = lay_out(ids, attended, answers, groups, PAD)
    assert len(layout["model"][ROWS]) == (8 if share else 6), "the two long prompts lie there once"
    labels = ids.masked_fill(answers == 0, -100)
    asked = {"input_ids": ids, "attention_mask": attended, "labels": labels, ASKED: True}
    found = model(**asked, **{LAYOUT: layout}).log_probs
    assert torch.allclose(found, expected * answers[:, 1:], atol=1e-5)
    assert torch.allclose(model(**asked).log_probs, found, atol=1e-5), "and from padded rows"
    assert layout["model"]["input_ids"][0, layout["ends"]].tolist() == [row[row != PAD][-1].item() for row in ids]


def test_a_judged_answer_is_also_read_behind_the_prompt_of_the_row_behind_its_own():
    rows = [JudgedTokens(f"r:{i}", array("i", [10 + i]), array("i", [20 + i]), i % 2 == 0) for i in range(5)]
    made = judged_as_dataset(rows, batch=3)
    assert made["KL_completion_ids"] == [[22], [20], [21], [24], [23]], "each micro-batch turns in itself"
    assert made["completion_ids"] == [[20], [21], [22], [23], [24]]
    assert made["label"] == [True, False, True, False, True]


def test_ktos_distance_to_the_reference_is_made_of_the_answers_behind_other_prompts(small_model):
    from trl import KTOTrainer
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    from lorasmith.preference.trainer import judged

    model = adapted(small_model("llama"), "none")
    pairs = some_pairs()
    rows = [
        JudgedTokens(f"r:{i}", array("i", prompt), array("i", answer), i == 0)
        for i, (prompt, answer, _) in enumerate(pairs)
    ]
    turned = [(pairs[i][0], pairs[i - 1][1]) for i in range(3)]
    expected = [likelihoods(model, prompt + answer)[-len(answer) :].sum() for prompt, answer in turned]
    levers.make_batches(model, recipe_with(**ALL))
    give_answers(model.get_base_model())
    collate = LaidOut(DataCollatorForUnpairedPreference(PAD), share=True, paired=False)
    kind = answering(judged(KTOTrainer), wanted=True)
    trainer = kind.__new__(kind)
    trainer.calculate_KL = True
    found = trainer._compute_kl_logps(model, collate(list(judged_as_dataset(rows, batch=3))))
    assert torch.allclose(found, torch.stack(expected), atol=1e-4)


def test_a_plan_counts_the_tokens_that_a_pair_is_laid_down_with():
    pairs = some_pairs()
    batch = padded_answers(pairs)
    made = [PairTokens("r:1", *(array("i", ids) for ids in pair)) for pair in pairs]
    planned = rows_of(PreparedPairs([], [], [], train_pairs=made)).pairs
    laid = []
    for pair in range(3):
        layout = lay_out(*(part[[pair, pair + 3]] for part in batch), groups=[[0, 1]], pad=PAD)
        laid.append(layout["model"]["input_ids"].numel())
    assert planned[:2] == tuple(laid[:2]) == (24 + 5 + 9 + 1, 3 + 7 + 3 + 3)
    assert planned[2] > laid[2], "what answers begin with alike is laid down once too"


def test_only_a_new_adapter_that_is_nothing_yet_makes_the_base_the_reference(small_model):
    from lorasmith.preference.trainer import is_base

    def model(**options):
        base = AutoModelForCausalLM.from_pretrained(small_model("llama"))
        return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options))

    assert is_base(model())
    assert not is_base(model(init_lora_weights=False)), "an adapter that is gone on with"
    assert not is_base(model(modules_to_save=["lm_head"])), "switched off, its head would be the base's"
    assert not is_base(model(init_lora_weights="pissa"))
