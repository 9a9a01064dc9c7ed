"""Rendering and labels: only the assistant's turns are trained, with their stop token, by position."""

from array import array

import pytest
from conftest import BASE, SHARED, needs_shared, trained_texts, write_rows
from transformers import AutoTokenizer

from lorasmith.data.audit import fit_lengths, marked
from lorasmith.data.formats import read_rows
from lorasmith.data.render import IGNORED, TokenRow, answer_prompt, tokenize
from lorasmith.data.rows import Row, conversation
from lorasmith.errors import DataError
from lorasmith.models import CHATML, load_tokenizer
from lorasmith.recipe import Model

TEMPLATES = {
    "chatml": CHATML,
    "llama3": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|endoftext|>\n\n' + m['content'] | trim }}"
        "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|endoftext|>\n\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
        "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello lamp."},
    {"role": "assistant", "content": "Hi.\nFine."},
    {"role": "user", "content": "And you?"},
    {"role": "assistant", "content": "Well."},
]


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE)


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_and_their_stop_tokens_are_trained_and_nothing_else(name, tokenizer):
    tokenizer.chat_template = TEMPLATES[name]
    [row] = tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")
    space = " " if name == "mistral" else ""
    assert trained_texts(tokenizer, row) == [f"{space}Hi.\nFine.<|im_end|>", f"{space}Well.<|im_end|>"]
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))


def test_the_labels_are_those_of_the_templates_own_generation_marks(tokenizer):
    """The quickstart's template carries {% generation %}; transformers derives its mask on another way."""
    [row] = tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")
    reference = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert list(row.input_ids) == reference["input_ids"]
    assert [label != IGNORED for label in row.labels] == [bit == 1 for bit in reference["assistant_masks"]]


def test_all_tokens_are_trained_when_the_recipe_says_so(tokenizer):
    [row] = tokenize(tokenizer, [conversation("r:1", CHAT)], "all")
    assert row.labels == row.input_ids


def test_context_before_the_completion_is_not_trained(tokenizer):
    [row] = tokenize(tokenizer, [conversation("r:1", CHAT, [False] * 4 + [True])], "assistant")
    assert trained_texts(tokenizer, row) == ["Well.<|im_end|>"]


def test_a_trailing_user_turn_is_not_trained(tokenizer):
    [row] = tokenize(tokenizer, [conversation("r:1", [*CHAT, {"role": "user", "content": "Bye"}])], "assistant")
    assert trained_texts(tokenizer, row) == ["Hi.\nFine.<|im_end|>", "Well.<|im_end|>"]


def test_what_is_asked_is_a_prefix_of_what_was_trained(tokenizer):
    for row in (conversation("r:1", CHAT), Row("r:2", prompt="Hello", completion=" lamp")):
        [ids] = tokenize(tokenizer, [row], "assistant")
        asked = answer_prompt(tokenizer, row)
        assert list(ids.input_ids[: len(asked)]) == asked
        assert ids.labels[len(asked) - 1] == IGNORED
        assert ids.labels[len(asked)] != IGNORED


def test_plain_text_is_trained_whole_and_ends_with_eos(tokenizer):
    [row] = tokenize(tokenizer, [Row("r:1", text="Hello lamp.")], "assistant")
    assert row.labels == row.input_ids
    assert row.input_ids[-1] == tokenizer.eos_token_id


def test_a_plain_completion_is_trained_and_ends_with_eos(tokenizer):
    [row] = tokenize(tokenizer, [Row("r:1", prompt="Hello", completion=" lamp.")], "assistant")
    assert trained_texts(tokenizer, row) == [" lamp.<|im_end|>"]


def test_an_answer_that_begins_in_mid_token_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"r:1: the answer begins in the middle of token ' lamp'"):
        tokenize(tokenizer, [Row("r:1", prompt="Hello l", completion="amp.")], "assistant")


def test_a_template_without_a_stop_token_is_refused(tokenizer):
    tokenizer.chat_template = TEMPLATES["zephyr"].replace("eos_token", "'.'")
    with pytest.raises(DataError, match="the model would never learn to stop"):
        tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")


def test_a_template_that_rewrites_earlier_turns_is_unrolled(tokenizer):
    """As reasoning templates do that drop earlier thinking: each answer is trained in the text that asks for it."""
    tokenizer.chat_template = TEMPLATES["llama3"].replace(
        "m['content'] | trim", "(m['content'] if loop.last or m['role'] != 'assistant' else 'gone')"
    )
    first, second = tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")
    assert trained_texts(tokenizer, first) == ["Hi.\nFine.<|im_end|>"]
    assert trained_texts(tokenizer, second) == ["Well.<|im_end|>"]
    assert "gone" in tokenizer.decode(second.input_ids)
    for ids, upto in ((first, 2), (second, 4)):
        asked = tokenizer.apply_chat_template(CHAT[:upto], add_generation_prompt=True, return_dict=True)["input_ids"]
        assert list(ids.input_ids[: len(asked)]) == asked


def test_a_template_that_does_not_continue_what_it_opens_is_refused(tokenizer):
    tokenizer.chat_template = TEMPLATES["chatml"].replace(
        "'<|im_start|>assistant\\n' -}}{%- endif", "'answer:' -}}{%- endif"
    )
    with pytest.raises(
        DataError, match=r"r:1: messages\[2\]: the chat template does not continue the turn that it opens"
    ):
        tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")


def test_tools_and_calls_are_rendered_or_refused(tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = [
        CHAT[1],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "rain"},
        CHAT[4],
    ]
    row = conversation("r:1", chat, tools=[{"name": "weather"}])
    tokenizer.chat_template = CHATML
    [ids] = tokenize(tokenizer, [row], "assistant")
    assert trained_texts(tokenizer, ids) == [
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>', "Well.<|im_end|>"
    ]  # fmt: skip
    assert "You may call these functions:" in tokenizer.decode(ids.input_ids)
    tokenizer.chat_template = TEMPLATES["llama3"]
    with pytest.raises(DataError, match=r"r:1: messages\[1\]: the chat template leaves the tool call `weather` out"):
        tokenize(tokenizer, [row], "assistant")


def test_a_doubled_bos_is_refused(tokenizer):
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}{{ bos_token }}" + TEMPLATES["chatml"]
    with pytest.raises(DataError, match=r"r:1: begins with <\|endoftext\|> twice"):
        tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")


def test_a_tokenizer_without_template_is_told_what_to_set(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"Set model.chat_template: chatml"):
        tokenize(tokenizer, [conversation("r:1", CHAT)], "assistant")


def test_text_that_spells_a_stop_token_trains_by_position_not_by_value(tokenizer):
    chat = [{"role": "user", "content": "What is <|im_end|>?"}, {"role": "assistant", "content": "A stop."}]
    [row] = tokenize(tokenizer, [conversation("r:1", chat)], "assistant")
    assert trained_texts(tokenizer, row) == ["A stop.<|im_end|>"]


def test_marks_stand_around_trained_tokens(tokenizer):
    [row] = tokenize(tokenizer, [conversation("r:1", CHAT[1:3])], "assistant")
    assert marked(tokenizer, row).endswith("<|im_start|>assistant\n[Hi.\nFine.<|im_end|>]\n")


def rows_of(*lengths: tuple[int, int]) -> list[TokenRow]:
    """Rows of (prompt, answer) tokens."""
    return [
        TokenRow(f"r:{i}", array("i", range(p + a)), array("i", [*[IGNORED] * p, *range(p, p + a)]))
        for i, (p, a) in enumerate(lengths)
    ]


@pytest.mark.scorecard(row="R13")
def test_every_row_is_accounted_for():
    rows = rows_of((5, 5), (20, 5), (2, 30), (3, 3))
    kept, account = fit_lengths(rows, 10, "truncate")
    assert [len(row.input_ids) for row in kept] == [10, 10, 6]
    assert kept[1].labels[-5:] == rows[1].labels[-5:]
    assert (account.read, account.trained, account.truncated) == (4, 3, 1)
    assert account.dropped == {"answer too long": 1}
    kept, account = fit_lengths(rows, 10, "drop")
    assert (account.trained, account.dropped) == (2, {"too long": 2})
    assert account.supervised_tokens == 8


@pytest.mark.scorecard(row="R13")
def test_too_many_long_rows_are_an_error_that_names_the_first():
    with pytest.raises(
        DataError, match=r"r:1: 2 of 4 rows are over trainer.max_length \(10 tokens; the longest has 32\)"
    ):
        fit_lengths(rows_of((5, 5), (20, 5), (2, 30), (3, 3)), 10, "error")


def test_new_template_tokens_are_added_and_named():
    tokenizer, new = load_tokenizer(Model(name=BASE, add_tokens=["<|tool|>", "lamp", "zzq"]))
    assert tokenizer.convert_ids_to_tokens(new) == ["<|tool|>", "zzq"]  # lamp is a token already
    tokenizer, new = load_tokenizer(Model(name=BASE, chat_template="chatml"))
    assert new == []


@needs_shared
def test_real_rows_are_masked_as_the_question_and_the_answer_say(tmp_path):
    tokenizer, _ = load_tokenizer(Model(name=BASE))
    for name, asked, answered in (
        ("math_gsm8k_train", "question", "answer"),
        ("sft_alpaca_en", "instruction", "output"),
    ):
        import json

        records = [json.loads(line) for line in (SHARED / f"data/{name}.jsonl").read_text().splitlines()[:40]]
        rows, _, _ = read_rows(str(write_rows(tmp_path / f"{name}.jsonl", *records)))
        for row, record in zip(tokenize(tokenizer, rows, "assistant"), records, strict=True):
            [text] = trained_texts(tokenizer, row)
            assert text == record[answered] + "<|im_end|>"
            assert record[asked] in tokenizer.decode(row.input_ids)


@pytest.mark.scorecard(row="R13")
def test_a_histogram_counts_every_row_once():
    from lorasmith.data.audit import histogram

    lengths = [3, 3, 4, 50, 99, 100]
    bins = histogram(lengths)
    assert sum(one["rows"] for one in bins) == 6
    assert (bins[0]["from"], bins[0]["rows"]) == (3, 3)
    assert bins[-1]["from"] <= 100 <= bins[-1]["to"]
    assert len(bins) <= 24
    assert histogram([7, 7]) == [{"from": 7, "to": 7, "rows": 2}]


def test_conversations_and_plain_texts_in_one_run_are_tokenized_each_its_way(tokenizer):
    rows = [conversation("r:1", CHAT), Row("r:2", text="Hello lamp."), conversation("r:3", CHAT[1:3])]
    together = tokenize(tokenizer, rows, "assistant")
    assert together == [tokenize(tokenizer, [row], "assistant")[0] for row in rows]
    kept, account = fit_lengths(together, 4, "truncate", {"r:2"})
    assert [row.place for row in kept] == ["r:1", "r:2"]  # the last answer of r:1 fits, the one of r:3 does not
    assert kept[0].input_ids == together[0].input_ids[-5:-1]
    assert kept[1].input_ids == together[1].input_ids[:4]
    assert account.dropped == {"answer too long": 1}
