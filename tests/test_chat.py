"""chat.py: one answer, a conversation with its commands, and a file of rows."""

import json
import shutil

from conftest import BASE, launch, write_rows


def test_one_prompt_is_answered_by_the_template_and_ends():
    done = launch("scripts/chat.py", BASE, "--prompt", "Repeat: Oslo lamp Friday")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "Oslo lamp Friday"


def test_a_conversation_remembers_forgets_and_switches(trained):
    lines = [
        "Please send three red cups to Mia in Oslo on Monday.",
        "Which city?",
        "/base",
        "Please send three red cups to Mia in Oslo on Monday.",
        "Which city?",
        "/reset",
        "/system Be brief.",
        "Repeat: Oslo lamp",
        "/nonsense",
        "/base",
        "/quit",
    ]
    done = launch("scripts/chat.py", trained, "--max-new-tokens", "24", stdin="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "(the base model answers now)" in out
    base_part = out.partition("(the base model answers now)")[2]
    assert "Mia" in base_part
    assert "Oslo." in base_part
    assert "(forgotten)" in out
    assert "(system message: Be brief.; conversation forgotten)" in out
    assert "(no such command: /nonsense; there are /reset, /system TEXT, /base, /quit)" in out
    assert out.rstrip().endswith("(the adapter answers now)\nyou>")


def test_the_end_of_input_ends_the_chat():
    assert launch("scripts/chat.py", BASE, stdin="").returncode == 0


def test_a_file_of_rows_is_answered_in_order(tmp_path):
    rows = write_rows(
        tmp_path / "asked.jsonl",
        {"question": "Repeat: Oslo lamp Friday"},
        {
            "messages": [
                {"role": "user", "content": "Repeat: Zoe cup"},
                {"role": "assistant", "content": "to be answered anew"},
            ]
        },
        {"instruction": "How do you spell 7?"},
    )
    out = tmp_path / "answers.jsonl"
    done = launch("scripts/chat.py", BASE, "--input", rows, "--output", out)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["answer"] for row in answers] == ["Oslo lamp Friday", "Zoe cup", "seven."]
    assert answers[1]["prompt"] == [{"role": "user", "content": "Repeat: Zoe cup"}]


def test_input_without_output_is_refused():
    done = launch("scripts/chat.py", BASE, "--input", "rows.jsonl")
    assert done.returncode == 2
    assert done.stderr == "error: --input and --output go together: rows to answer, and where the answers go.\n"


def test_an_adapter_whose_template_changed_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>helper"))
    done = launch("scripts/chat.py", folder, "--prompt", "Hello!")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {folder}: its tokenizer or chat template renders otherwise than in training (golden conversation 1, "
        "token 10). Restore the files that training wrote, or train anew.\n"
    )
