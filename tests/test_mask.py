"""The mask is derived in two ways that must agree, over the templates people meet."""

import pytest
from conftest import BASE, SHARED, needs_shared, trained_texts
from transformers import AutoTokenizer

from lorasmith.data.mask import check_contract, check_masks, template_contract
from lorasmith.data.render import tokenize
from lorasmith.data.rows import conversation
from lorasmith.errors import DataError
from lorasmith.models import CHATML

pytestmark = pytest.mark.scorecard(row="R7")

OPEN, CLOSE = "{% generation %}", "{% endgeneration %}"


def styled(user: str, assistant: str, opening: str, system: str = "", tool: str = "") -> str:
    """A template out of how each role's turn is written; `assistant` holds the marks."""
    return (
        "{% for m in messages %}{% if m.role == 'system' %}" + (system or user) + "{% elif m.role == 'assistant' %}"
        + assistant + "{% elif m.role == 'tool' %}" + (tool or user) + "{% else %}" + user + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}" + opening + "{% endif %}"
    )  # fmt: skip


CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
SAID = OPEN + "{{ m.content }}" + CALLS + "<|im_end|>" + CLOSE
STYLES = {
    "chatml": styled("<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "<|im_start|>assistant\n" + SAID + "\n", "<|im_start|>assistant\n"),
    "llama3": styled(
        "<|im_start|>{{ m.role }}<|sep|>\n\n{{ m.content | trim }}<|im_end|>",
        "<|im_start|>assistant<|sep|>\n\n" + SAID.replace("m.content", "m.content | trim"), "<|im_start|>assistant<|sep|>\n\n",
    ),
    "gemma": styled("<|im_start|>user\n{{ m.content | trim }}<|im_end|>\n", "<|im_start|>model\n" + SAID + "\n", "<|im_start|>model\n"),
    "mistral": styled("[INST] {{ m.content }} [/INST]", SAID, ""),
    "phi": styled("<|{{ m.role }}|>\n{{ m.content }}<|im_end|>\n", "<|assistant|>\n" + SAID + "\n", "<|assistant|>\n"),
    "zephyr": styled("<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n", "<|assistant|>\n" + SAID.replace("<|im_end|>", "{{ eos_token }}") + "\n", "<|assistant|>\n"),
    "qwen-thinking": styled(
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n",
        "<|im_start|>assistant\n" + OPEN + "{% if loop.last and '<think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') }}" + CALLS + "<|im_end|>" + CLOSE + "\n",
        "<|im_start|>assistant\n",
    ),
    "command": styled(
        "<|turn|><|{{ m.role | upper }}|>{{ m.content }}<|end|>", "<|turn|><|BOT|>" + SAID.replace("<|im_end|>", "<|end|>"), "<|turn|><|BOT|>"
    ),
}  # fmt: skip
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
USER, ANSWER = {"role": "user", "content": "How is the day?"}, {"role": "assistant", "content": "Fine.\nVery."}
SHAPES = {
    "single turn": ([USER, ANSWER], [["Fine.\nVery."]]),
    "many turns": ([USER, ANSWER, {"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Well."}], [["Fine.\nVery."], ["Well."]]),
    "system": ([{"role": "system", "content": "Be brief."}, USER, ANSWER], [["Fine.\nVery."]]),
    "tools": (
        [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "rain"}, ANSWER],
        [['{"name": "weather", "arguments": {"city": "Oslo"}}'], ["Fine.\nVery."]],
    ),
    "empty thinking": ([USER, {"role": "assistant", "content": "<think>\n\n</think>\n\nFine."}], [["<think>\n\n</think>\n\nFine."]]),
    "trailing user turn": ([USER, ANSWER, {"role": "user", "content": "Bye now"}], [["Fine.\nVery."]]),
}  # fmt: skip


def styled_tokenizer(template: str):
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_tokens(["<|sep|>", "<|turn|>", "<|end|>"], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def all_trained_texts(tokenizer, row) -> list[str]:
    """The trained parts of a row, over all the texts that it becomes."""
    return [text for one in tokenize(tokenizer, [row], "assistant") for text in trained_texts(tokenizer, one)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("marks", ["with marks", "without marks"])
def test_golden_masks(style, shape, marks):
    template = STYLES[style] if marks == "with marks" else STYLES[style].replace(OPEN, "").replace(CLOSE, "")
    tokenizer = styled_tokenizer(template)
    messages, answers = SHAPES[shape]
    row = conversation("r:1", messages)
    found = all_trained_texts(tokenizer, row)
    stop = "<|end|>" if style == "command" else "<|im_end|>"
    assert len(found) == len(answers)
    for text, [answer] in zip(found, answers, strict=True):
        assert text.endswith(stop)
        assert text.count(stop) == 1
        assert answer in text
        extra = text.replace(answer, "").replace(stop, "").replace("<call>", "").replace("</call>", "")
        assert extra in ("", "<think>\n\n</think>\n\n")
    assert "found equal" in check_masks(tokenizer, [row])


MUTATIONS = {
    "end token behind the mark": lambda t, stop: t.replace(stop + CLOSE, CLOSE + stop),
    "end token left out": lambda t, stop: t.replace(stop + CLOSE, CLOSE),
    "opening mark dropped": lambda t, stop: t.replace(OPEN, ""),
    "closing mark dropped": lambda t, stop: t.replace(CLOSE, ""),
    "mark around the user": lambda t, stop: OPEN + t.replace(OPEN, "").replace(CLOSE, "") + CLOSE,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_a_mutated_template_is_refused(style, mutation):
    stop = {"command": "<|end|>", "zephyr": "{{ eos_token }}"}.get(style, "<|im_end|>")
    changed = MUTATIONS[mutation](STYLES[style], stop)
    assert changed != STYLES[style]
    tokenizer = styled_tokenizer(changed)
    row = conversation("r:1", [USER, ANSWER])

    def audit():
        tokenize(tokenizer, [row], "assistant")
        check_masks(tokenizer, [row])

    with pytest.raises(DataError) as caught:
        audit()
    assert str(caught.value).startswith("r:1: ")
    assert "\n" not in str(caught.value)


def test_a_template_that_writes_the_question_into_the_answer_is_refused():
    """No marks to compare with: the place of the answer tells."""
    template = CHATML.replace(OPEN, "").replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    template = template.replace(
        "{{- message.content + calls", "{{- messages[0].content + ' ' + message.content + calls"
    )
    with pytest.raises(DataError, match=r"r:1: messages\[1\]: its text does not stand where"):
        check_masks(styled_tokenizer(template), [conversation("r:1", [USER, ANSWER])])


def test_every_shape_of_conversation_is_checked_and_said():
    rows = [conversation(f"r:{i}", messages) for i, (messages, _) in enumerate(list(SHAPES.values()) * 50)]
    said = check_masks(styled_tokenizer(STYLES["chatml"]), rows)
    assert (
        said
        == "mask: derived a second way and found equal, on conversations of every shape (64 against the template's own marks)"
    )


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3", "gemma", "phi3", "qwen3_instruct_2507"])
def test_real_templates_agree_with_trls_training_copies(name):
    """The templates as their models ship them; trl keeps both them and its marked copies."""
    from pathlib import Path

    import trl

    template = (Path(trl.__file__).parent / f"chat_templates/{name}.jinja").read_text(encoding="utf-8")
    tokenizer = styled_tokenizer(template)
    ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "phi3": "<|end|>\n<|im_end|>"}
    tokenizer.add_tokens(
        ["<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|assistant|>", "<|user|>"], special_tokens=True
    )
    tokenizer.bos_token = "<|endoftext|>"
    row = conversation("r:1", [USER, ANSWER])
    [text] = all_trained_texts(tokenizer, row)
    assert text.removeprefix("<think>\n\n</think>\n\n") == "Fine.\nVery." + ends.get(name, "<|im_end|>")
    assert "1 against trl's training template" in check_masks(tokenizer, [row])


def test_a_real_thinking_template_is_unrolled():
    from pathlib import Path

    import trl

    template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")
    messages, _ = SHAPES["many turns"]
    rows = tokenize(styled_tokenizer(template), [conversation("r:1", messages)], "assistant")
    assert len(rows) == 2


def test_the_contract_tells_a_changed_template_and_a_changed_tokenizer():
    tokenizer = styled_tokenizer(STYLES["chatml"])
    contract = template_contract(tokenizer)
    assert len(contract) == 3
    check_contract(tokenizer, contract, "run")
    tokenizer.chat_template = STYLES["chatml"].replace("assistant\n", "assistant:\n")
    with pytest.raises(
        DataError, match=r"run: its tokenizer or chat template renders otherwise .*conversation 1, token"
    ):
        check_contract(tokenizer, contract, "run")


def test_a_template_that_knows_no_system_turn_makes_a_smaller_contract():
    template = STYLES["gemma"].replace(
        "{% if m.role == 'system' %}", "{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    )
    assert len(template_contract(styled_tokenizer(template))) == 2


@needs_shared
def test_real_conversations_with_tools_agree(tmp_path):
    from lorasmith.data.formats import read_rows

    rows, kind, _ = read_rows(str(SHARED / "data/tools_glaive_sharegpt.jsonl"))
    assert kind == "sharegpt"
    said = check_masks(styled_tokenizer(CHATML), rows)
    assert "found equal" in said
