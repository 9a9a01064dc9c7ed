"""Ollama's Modelfile for a GGUF file, its template derived from the tokenizer's own chat template and compared with it.

Ollama does not read the chat template in a GGUF file: it guesses one of its own from it, or sends bare text. Here the
chat template renders messages whose contents are marks; what stands between the marks becomes a Go template, and what
that template renders must be, byte for byte, what the chat template does.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorasmith.errors import ModelError
from lorasmith.hostile import check_template

Message = dict[str, str]
SYSTEM, USER, ANSWER, AGAIN, DATE = (f"\u2460{word}\u2461" for word in ("system", "first", "answer", "again", "day"))
# transformers gives templates this function; a Modelfile with today's answer would be wrong tomorrow.
MARKED_DATE = f"{{%- macro strftime_now(format) -%}}{DATE}{{%- endmacro -%}}"
TALK = [
    {"role": "user", "content": 'Wie hei\u00dft \u4f60\u597d \U0001f600?\n\nIn {{ one }} "word", <b>please</b>.'},
    {"role": "assistant", "content": "Hello.\n{% not a template %}"},
    {"role": "user", "content": "And 2 + 2, \\n or it's 5?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "x"},
]
BRIEF = {"role": "system", "content": "Answer {{ .briefly }},\nin 'English'."}
# Rendered by both and compared: one turn and more, with and without a system message.
CHECKED = (TALK[:1], TALK[:3], TALK, [BRIEF, *TALK[:1]], [BRIEF, *TALK])


def modelfile(
    tokenizer: PreTrainedTokenizerBase, gguf_name: str, stop_ids: Iterable[int] = (), context: int | None = None
) -> str:
    """The text of a Modelfile beside a GGUF file; `ollama create NAME -f Modelfile` takes it.

    A tokenizer without a chat template gives one that sends the bare prompt. Contents are taken as they are: a chat
    template that strips spaces at their ends is equal on contents without any.

    Args:
        gguf_name: The file's name, relative to the Modelfile.
        stop_ids: Tokens that end an answer, such as those of generation_config, besides the tokenizer's EOS.
        context: Tokens that the model may see at once; None leaves it to Ollama.

    Raises:
        ModelError: If the chat template does more than a Modelfile can say, or the two render differently.
    """
    where = os.path.basename(str(tokenizer.name_or_path)) or gguf_name
    if not re.fullmatch(r"[\w .+-]+", gguf_name):
        raise ModelError(f"{gguf_name!r}: a Modelfile cannot name this file. Use letters, digits, dots and dashes.")
    template = "{{ .Prompt }}"
    if tokenizer.chat_template:
        check_template(tokenizer, where)
        template = _derived(tokenizer, where)
    stops = [tokenizer.convert_ids_to_tokens(one) for one in {*stop_ids, tokenizer.eos_token_id} - {None}]
    lines = [f"FROM ./{gguf_name}", f"TEMPLATE {_quoted(template, where)}"]
    lines += [f"PARAMETER stop {_quoted(stop, where, short=True)}" for stop in sorted(map(str, stops))]
    if context is not None:
        lines.append(f"PARAMETER num_ctx {context}")
    text = "\n".join(lines) + "\n"
    if tokenizer.chat_template:
        _check(tokenizer, template_in(text), where)
    return text


def _derived(tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """A Go template with what the chat template writes around the contents."""
    asked, answered, again = _message("user", USER), _message("assistant", ANSWER), _message("user", AGAIN)
    before_user, between, after_answer, generation = _around(tokenizer, [asked, answered, again], where)
    if _around(tokenizer, [asked], where) != [before_user, generation]:
        raise ModelError(f"{where}: its chat template writes a turn otherwise when others follow. No Modelfile can.")
    system = None
    if accepts_system(tokenizer):
        system = _around(tokenizer, [_message("system", SYSTEM), asked, answered, again], where)
    # What opens a user's turn: the end that all texts before a user's content have in common.
    befores = [before_user, after_answer] + ([system[1]] if system else [])
    open_user = _common([text[::-1] for text in befores])[::-1]
    lead, close_answer = (text.removesuffix(open_user) for text in (before_user, after_answer))
    # A turn mostly ends as an answer does; any other cut of what two texts begin with renders the same.
    close_user = _common([between, generation, close_answer])
    if system:
        told = f"{_go(system[0])}{{{{ .System }}}}{_go(system[1].removesuffix(open_user))}"
        lead = f"{{{{ if .System }}}}{told}{{{{ else }}}}{_go(lead)}{{{{ end }}}}"
    else:
        lead = _go(lead)
    user = f"{_go(open_user)}{{{{ .Content }}}}{_go(close_user)}"
    answer = f"{_go(between.removeprefix(close_user))}{{{{ .Content }}}}{_go(close_answer)}"
    return (
        f'{lead}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{user}'
        f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}'
        f"{_go(generation.removeprefix(close_user))}"
    )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _common(texts: Sequence[str]) -> str:
    """The beginning that all texts share."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _around(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> list[str]:
    """What the chat template writes before, between and after the contents of the messages."""
    text = _rendered(tokenizer, messages, where)
    contents = [message["content"] for message in messages]
    parts = re.split("|".join(map(re.escape, contents)), text)
    if re.findall("|".join(map(re.escape, contents)), text) != contents:
        raise ModelError(f"{where}: its chat template moves or repeats contents, which no Modelfile can say.")
    if any(DATE in part for part in parts):
        raise ModelError(f"{where}: its chat template writes the day's date, which no Modelfile can say.")
    return parts


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], where: str) -> str:
    """What is sent to the model, without the BOS that the engine puts before every text."""
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            chat_template=MARKED_DATE + str(tokenizer.get_chat_template()),
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception as error:  # whatever a template raises
        said = " ".join(str(error).split())[:100]
        raise ModelError(f"{where}: its chat template refuses a plain conversation ({said}).") from error
    bos = tokenizer.bos_token
    adds_bos = bool(bos) and tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    if adds_bos and not str(text).startswith(str(bos)):
        raise ModelError(
            f"{where}: its tokenizer puts {bos} before every text and its chat template does not, so Ollama would send "
            "a token more than the model was trained with. Set add_bos_token to false in its tokenizer_config.json."
        )
    return str(text).removeprefix(str(bos)) if adds_bos else str(text)


def accepts_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template renders a system message, and does not refuse it or leave it out."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
    try:
        return SYSTEM in str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # whatever a template raises
        return False


def _check(tokenizer: PreTrainedTokenizerBase, template: str, where: str) -> None:
    """Render conversations both ways."""
    for messages in CHECKED:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        if system and not accepts_system(tokenizer):
            continue
        want, got = _rendered(tokenizer, messages, where), render(template, messages, system)
        if want != got:
            at = len(_common([want, got]))
            raise ModelError(
                f"{where}: a Modelfile cannot say its chat template: at character {at} it writes "
                f"{want[at : at + 30]!r}, the Modelfile {got[at : at + 30]!r}. Use llama.cpp's server, which reads it."
            )


ACTION = re.compile(r"\{\{ (.*?) \}\}")


def render(template: str, messages: Sequence[Message], system: str = "") -> str:
    """What Ollama makes of a template of ours: the part of Go's text/template that `modelfile` writes.

    Raises:
        ValueError: If the template holds another action.
    """
    out: list[str] = []
    _run(ACTION.split(template), 0, {"System": system, "Messages": messages}, out)
    return "".join(out)


def _run(parts: list[str], at: int, scope: dict[str, Any], out: list[str] | None) -> int:
    """Write parts[at:] up to the end or else of this block, or only pass it; even parts are text, odd ones actions.

    Returns:
        The index of the action that ended it.
    """
    while at < len(parts):
        word = parts[at]
        if at % 2 == 0:
            if out is not None:
                out.append(word)
        elif word == "end" or word.startswith("else"):
            return at
        elif word == "range .Messages":
            body = at + 1
            at = _run(parts, body, scope, None)
            for message in scope["Messages"] if out is not None else ():
                _run(parts, body, scope | {"Role": message["role"], "Content": message["content"]}, out)
        elif word.startswith("if "):
            taken = False
            while word != "end":
                holds = not taken and (
                    word == "else" or (out is not None and _holds(word.removeprefix("else "), scope))
                )
                taken = taken or holds
                at = _run(parts, at + 1, scope, out if holds else None)
                word = parts[at]
        elif out is not None:
            out.append(_value(word, scope))
        at += 1
    return at


def _holds(condition: str, scope: dict[str, Any]) -> bool:
    found = re.fullmatch(r'if (?:eq \.(\w+) "(\w+)"|\.(\w+))', condition)
    if not found:
        raise ValueError(condition)
    return scope[found[1]] == found[2] if found[1] else bool(scope[found[3]])


def _value(word: str, scope: dict[str, Any]) -> str:
    if word == '"{{"':
        return "{{"
    if word not in (".System", ".Content"):
        raise ValueError(word)
    return str(scope[word[1:]])


def _go(text: str) -> str:
    """Text as it stands in a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str, where: str, short: bool = False) -> str:
    """Text between a Modelfile's quotes, single or threefold, which have no escape."""
    if short and '"' not in text:
        return f'"{text}"'
    if '"""' in text or text.endswith('"') or "\0" in text:
        raise ModelError(f"{where}: its chat template has quotes that a Modelfile cannot hold.")
    return f'"""{text}"""'


def template_in(text: str) -> str:
    """The template of a Modelfile that `modelfile` wrote."""
    found = re.search(r'^TEMPLATE """(.*?)"""$', text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]
