"""Pairs as tokens: one prompt, two whole answers, and refusals where a pair could teach nothing or the wrong thing."""

import pytest
from conftest import BASE, SHARED, needs_shared, write_rows
from transformers import AutoTokenizer

from lorasmith.data.judged_tokens import tokenize_judged
from lorasmith.data.pair_tokens import balance_line, fit_pairs, tokenize_pairs
from lorasmith.data.pairs import Judged, read_pairs
from lorasmith.data.render import IGNORED
from lorasmith.errors import DataError


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


def pairs(tmp_path, *rows):
    return read_pairs(str(write_rows(tmp_path / "pairs.jsonl", *rows))).rows


def chat(asked, chosen, rejected):
    return {
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def test_a_pair_is_one_prompt_and_two_answers_with_their_stop_tokens(tokenizer, tmp_path):
    [found] = tokenize_pairs(tokenizer, pairs(tmp_path, chat("Two blue kettles.", "Yes, two.", "No.")))
    assert tokenizer.decode(found.prompt) == "<|im_start|>user\nTwo blue kettles.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.chosen) == "Yes, two.<|im_end|>"
    assert tokenizer.decode(found.rejected) == "No.<|im_end|>"
    chosen, rejected = found.rows()
    assert list(chosen.input_ids) == list(found.prompt) + list(found.chosen)
    assert [label for label in rejected.labels if label != IGNORED] == list(found.rejected)
    assert found.tokens == len(chosen.input_ids) + len(rejected.input_ids)
    assert found.longest == max(len(chosen.input_ids), len(rejected.input_ids))


def test_plain_pairs_are_taken_as_they_are_and_end_with_the_eos_token(tokenizer, tmp_path):
    row = {"prompt": "The colour of snow is", "chosen": " white.", "rejected": " black."}
    [found] = tokenize_pairs(tokenizer, pairs(tmp_path, row))
    assert tokenizer.decode(found.prompt) == "The colour of snow is"
    assert tokenizer.decode(found.chosen) == " white." + tokenizer.eos_token
    assert tokenizer.decode(found.rejected) == " black." + tokenizer.eos_token


@pytest.mark.scorecard(row="R13")
@pytest.mark.parametrize("answers", [("Yes, three blue kettles.", "No."), ("Yes.", "No, there is no blue kettle.")])
def test_the_prompt_is_cut_for_both_answers_alike_and_no_answer_is(tokenizer, tmp_path, answers):
    row = chat("Order for Tess, Lima: three blue kettles, Wednesday. " * 4, *answers)
    [whole] = tokenize_pairs(tokenizer, pairs(tmp_path, row))
    longer = max(len(whole.chosen), len(whole.rejected))
    assert whole.longest == len(whole.prompt) + longer
    for limit in range(longer + 1, whole.longest + 2):
        [cut], account = fit_pairs([whole], limit, "truncate")
        assert cut.longest == min(limit, whole.longest)
        assert (cut.chosen, cut.rejected) == (whole.chosen, whole.rejected)
        assert whole.prompt[len(whole.prompt) - len(cut.prompt) :] == cut.prompt
        assert account.truncated == (limit < whole.longest)
        assert account.read == account.trained + sum(account.dropped.values())
    with pytest.raises(DataError, match="no pair is left of 1"):
        fit_pairs([whole], longer, "truncate")


@pytest.mark.scorecard(row="R13")
def test_too_many_long_pairs_are_refused_and_a_few_are_dropped(tokenizer, tmp_path):
    rows = [chat("Hi.", "Yes.", "No.") for _ in range(300)] + [chat("Hi. " * 40, "Yes.", "No.")]
    found = tokenize_pairs(tokenizer, pairs(tmp_path, *rows))
    kept, account = fit_pairs(found, 60, "error")
    assert (len(kept), account.dropped) == (300, {"too long": 1})
    with pytest.raises(DataError, match=r"pairs.jsonl:1: 301 of 301 rows are over trainer.max_length \(8 tokens"):
        fit_pairs(found, 8, "error")
    assert fit_pairs(found, None, "error")[1].trained == 301


def test_answers_that_the_template_writes_alike_are_refused(tokenizer, tmp_path):
    made = pairs(tmp_path, chat("Hi.", "Yes.", "No."), chat("Hi.", "Yes.", "Yes. "))
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = tokenizer.chat_template.replace("message['content']", "(message['content'] | trim)")
    with pytest.raises(DataError, match=r"pairs.jsonl:2: chosen and rejected have the same tokens"):
        tokenize_pairs(tokenizer, made)
    rejected = []
    assert len(tokenize_pairs(tokenizer, made, rejected)) == 1
    assert len(rejected) == 1


def test_a_pair_that_stands_there_twice_by_its_weight_is_trained_twice(tokenizer, tmp_path):
    made = pairs(tmp_path, chat("Hi.", "Yes.", "No."), chat("Ho.", "Yes.", "No."))
    found = tokenize_pairs(tokenizer, [*made, *made])
    assert [pair.place for pair in found] == [pair.place for pair in [*made, *made]]
    judged = [Judged(pair.place, pair.prompt, pair.chosen, True) for pair in made]
    twice, account = tokenize_judged(tokenizer, [*judged, *judged], None, "error")
    assert len(twice) == account.trained == 4


def test_answers_that_the_template_splits_are_refused_one_and_all(tokenizer, tmp_path):
    turns = [
        {"role": "assistant", "content": "A."},
        {"role": "user", "content": "B?"},
        {"role": "assistant", "content": "C."},
    ]
    rows = [chat(f"Hi {i}.", "Yes.", "No.") | {"chosen": turns} for i in range(2)] + [chat("Hi.", "Yes.", "No.")]
    made = pairs(tmp_path, *rows)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "('' if message['role'] == 'assistant' and not loop.last else message['content'])"
    )
    with pytest.raises(DataError, match="chosen: the chat template rewrites earlier turns"):
        tokenize_pairs(tokenizer, made)
    rejected = []
    assert [pair.place for pair in tokenize_pairs(tokenizer, made, rejected)] == [made[2].place]
    assert len(rejected) == 2


def test_the_lengths_of_the_answers_are_compared(tokenizer, tmp_path):
    found = tokenize_pairs(
        tokenizer, pairs(tmp_path, chat("Hi.", "Yes, yes, yes, yes.", "No."), chat("Hi.", "A.", "B."))
    )
    assert balance_line(found).endswith("it is the longer one in 50% of them")


@needs_shared
def test_real_pairs_become_tokens_unedited(tokenizer):
    source = SHARED / "data/pref_hh_harmless_dpo.jsonl"
    found = tokenize_pairs(tokenizer, read_pairs(str(source), on_bad_row="drop").rows[:300], [])
    assert len(found) > 290
    kept, account = fit_pairs(found, 512, "truncate")
    assert account.read == account.trained + sum(account.dropped.values())
    assert all(pair.longest <= 512 for pair in kept)
