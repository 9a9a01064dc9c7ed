"""Talk to an adapter or a model in the terminal.

    python scripts/chat.py ADAPTER_OR_MODEL
    python scripts/chat.py ADAPTER_OR_MODEL --prompt "One question."
    python scripts/chat.py ADAPTER_OR_MODEL --input rows.jsonl --output answers.jsonl

In the chat: /reset forgets the conversation, /system TEXT sets the system message, /base switches the adapter off and
on, /quit ends.
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from lorasmith.console import say
from lorasmith.errors import LorasmithError
from lorasmith.runs.ending import quiet, run_script
from lorasmith.started import quick_imports

BATCH = 16  # prompts of --input at a time


def main() -> None:
    arguments = parse_arguments()
    if bool(arguments.input) != bool(arguments.output):
        raise LorasmithError("--input and --output go together: rows to answer, and where the answers go.")
    quiet(arguments.offline)
    with quick_imports():
        from lorasmith.runs.opening import open_model

    opened = open_model(arguments.model, arguments.base, arguments.quantization, arguments.trust_remote_code)
    if arguments.input:
        answer_file(opened, arguments)
    elif arguments.prompt is not None:
        messages = with_system(arguments.system, [{"role": "user", "content": arguments.prompt}])
        answer(opened, messages, arguments)
    else:
        talk(opened, arguments)


def talk(opened: Any, arguments: argparse.Namespace) -> None:
    """Read, answer, repeat, until end of input."""
    from peft import PeftModel

    say("/reset, /system TEXT, /base, /quit")
    messages: list[dict[str, str]] = []
    system, on_base = arguments.system, False
    while True:
        try:
            line = input("you> ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command in ("/quit", "/exit"):
            return
        if command == "/reset":
            messages = []
            say("(forgotten)")
        elif command == "/system":
            system, messages = rest.strip() or None, []
            say(f"(system message: {system or 'none'}; conversation forgotten)")
        elif command == "/base":
            if isinstance(opened.model, PeftModel):
                on_base = not on_base
                say(f"(the {'base model' if on_base else 'adapter'} answers now)")
            else:
                say("(this is a whole model; there is no adapter to switch off)")
        elif command.startswith("/"):
            say(f"(no such command: {command}; there are /reset, /system TEXT, /base, /quit)")
        elif line:
            asked = [*messages, {"role": "user", "content": line}]
            with opened.model.disable_adapter() if on_base else contextlib.nullcontext():
                text = answer(opened, with_system(system, asked), arguments)
            if text is not None:
                messages = [*asked, {"role": "assistant", "content": text}]


def answer(opened: Any, messages: list[dict[str, str]], arguments: argparse.Namespace) -> str | None:
    """Print one answer while it is made; None if it was interrupted from the keyboard."""
    import torch
    from transformers import TextStreamer

    from lorasmith.data.render import prompt_ids

    ids = torch.tensor([prompt_ids(opened.tokenizer, messages, None)], device=opened.model.device)
    streamer = TextStreamer(opened.tokenizer, skip_prompt=True, skip_special_tokens=True)
    try:
        out = opened.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            streamer=streamer,
            max_new_tokens=arguments.max_new_tokens,
            **sampling(arguments.temperature),
        )
    except KeyboardInterrupt:
        say("\n(interrupted)")
        return None
    return str(opened.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def answer_file(opened: Any, arguments: argparse.Namespace) -> None:
    """Answer every row of --input greedily, in batches, and write the rows with their answers to --output."""
    from lorasmith.data.formats import read_prompts
    from lorasmith.data.render import answer_prompt
    from lorasmith.evaluation.scores import greedy_answers

    rows = read_prompts(arguments.input)
    prompts = [answer_prompt(opened.tokenizer, row) for row in rows]
    answers = greedy_answers(opened.model, opened.tokenizer, prompts, arguments.max_new_tokens, BATCH)
    with Path(arguments.output).open("w", encoding="utf-8") as file:
        for row, text in zip(rows, answers, strict=True):
            asked = row.messages[: row.answer_start] if row.messages else row.prompt
            file.write(json.dumps({"prompt": asked, "answer": text}, ensure_ascii=False) + "\n")
    say(f"{len(rows)} answers written to {arguments.output}")


def with_system(system: str | None, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with its system message in front, if there is one."""
    return [{"role": "system", "content": system}, *messages] if system else messages


def sampling(temperature: float) -> dict[str, Any]:
    """Arguments of generate: greedy at temperature 0, else sampled."""
    if temperature == 0:
        return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return {"do_sample": True, "temperature": temperature}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with the model")
    parser.add_argument("--offline", action="store_true", help="open no connection; what is missing is an error")
    parser.add_argument("model", help="folder of an adapter or a model, or a model's hub id")
    parser.add_argument("--prompt", help="answer this and end")
    parser.add_argument("--system", help="system message")
    parser.add_argument("--input", help="rows to answer: messages, prompt, instruction or question")
    parser.add_argument("--output", help="where the answers go, one JSON object a line")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--quantization", choices=("none", "int8", "nf4", "fp4"), help="of the base, if not as trained")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", default=512, help="longest answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the most likely token")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
