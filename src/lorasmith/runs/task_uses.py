"""How the models of tasks are used, for their cards."""

from typing import Any

from lorasmith.runs.answer_use import answer_lines, windows_line
from lorasmith.upstream import TASKS

_PIPELINE = """\
## Use

```python
from peft import {auto}
from transformers import AutoTokenizer, pipeline{{quantizer}}

folder = "{{folder}}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = {auto}.from_pretrained(folder{settings}{{quantized}})
print(pipeline("{pipeline}", model=model, tokenizer=tokenizer{options})({example}))
```

Or for a file of rows: `python scripts/predict.py {{folder}} rows.jsonl --output answers.jsonl`.{more}"""
_GENERATE = """\
## Use

```python
from peft import AutoPeftModelForSeq2SeqLM
from transformers import AutoTokenizer{{quantizer}}

folder = "{{folder}}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForSeq2SeqLM.from_pretrained(folder{{quantized}})
inputs = tokenizer({prefix}"...", return_tensors="pt")
written = model.generate(**inputs, {settings})
print(tokenizer.decode(written[0], skip_special_tokens=True))
```

Or for a file of rows: `python scripts/predict.py {{folder}} rows.jsonl --output answers.jsonl`.{more}"""
_ANSWERS = """\
## Use

```python
import torch
from peft import AutoPeftModelForQuestionAnswering
from transformers import AutoTokenizer{{quantizer}}

folder = "{{folder}}"  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForQuestionAnswering.from_pretrained(folder{settings}{{quantized}})
{lines}
```

Or for a file of rows: `python scripts/predict.py {{folder}} rows.jsonl --output answers.jsonl`.{more}"""
EXAMPLES = {
    "text_classification": '"..."',
    "token_classification": '"..."',
}
_OPTIONS = {"text_classification": ", top_k=None", "token_classification": ', aggregation_strategy="first"'}


def task_use(run: dict[str, Any]) -> str:
    """How an adapter is used, with fields `folder`, `quantizer` and `quantized` to be filled in."""
    method, task = run["method"], run.get("task", {})
    if method == "seq2seq":
        return _writing(task)
    if method == "question_answering":
        renamed = task.get("key_mapping")  # of the base's files
        settings = f", key_mapping={renamed}" if renamed else ""
        settings, lines = (
            text.replace("{", "{{").replace("}", "}}") for text in (settings, answer_lines(task, adapted=True))
        )
        return _ANSWERS.format(settings=settings, lines=lines, more=windows_line(task))
    names = task.get("labels") or []
    settings, more = "", ""
    if task.get("problem") == "regression":
        settings = ', num_labels=1, problem_type="regression"'
    elif names:
        settings = f", num_labels={len(names)}, id2label={dict(enumerate(names))}"
        settings = settings.replace("{", "{{").replace("}", "}}")
        settings += f', problem_type="{task["problem"]}"' if "problem" in task else ""
    if task.get("thresholds"):
        chosen = ", ".join(f"{name} {value:.3f}" for name, value in zip(names, task["thresholds"], strict=True))
        more = f" A label is given from these probabilities on: {chosen}.".replace("{", "{{").replace("}", "}}")
    if method == "question_answering":
        more = " An answer that is not in the context is the empty text (`handle_impossible_answer=True`)."
    return _PIPELINE.format(
        auto=TASKS[method].auto.replace("Auto", "AutoPeft", 1),
        pipeline=TASKS[method].pipeline,
        settings=settings,
        options=_OPTIONS.get(method, ""),
        example=EXAMPLES[method],
        more=more,
    )


def _writing(task: dict[str, Any]) -> str:
    """`task_use` of what writes; transformers has no pipeline for it any more."""
    prefix, more = task.get("prefix", ""), ""
    settings = f"num_beams={task.get('num_beams', 1)}, max_new_tokens={task.get('generation_max_length', 128)}"
    for name in ("decoder_start_token_id", "forced_bos_token_id"):
        if task.get(name) is not None:
            settings += f", {name}={task[name]}"
    if "source_language" in task:
        more = f" It writes {task['target_language']} for {task['source_language']}, which the tokenizer here knows."
    shown = f"{prefix!r} + " if prefix else ""
    return _GENERATE.format(prefix=shown.replace("{", "{{").replace("}", "}}"), settings=settings, more=more)
