"""The card of an exported model: what it was made of, and how it was proven."""

import re
from pathlib import Path
from typing import Any

from lorasmith.export.proof import Drift
from lorasmith.export.score_proof import ScoreDrift
from lorasmith.runs.answer_use import answer_lines
from lorasmith.runs.task_uses import EXAMPLES
from lorasmith.upstream import CAUSAL, TASKS

HUB = "https://huggingface.co/"
_CARD = """\
---
base_model: {base}
library_name: {library}
pipeline_tag: {pipeline}
tags: [{tags}]
---

# {name}

{what} of {base_link} and {adapters}.

{use}

## Proof

{proof}

## Licences

| | |
|---|---|
| base model {base} | {base_licence} |
| {adapters} | {adapter_licence} |

What it may be used for is what both allow. It inherits what its base model knows and gets wrong: read the base's card.
"""
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
messages = [{{"role": "user", "content": "..."}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=200)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```"""

_USE_TASK = """\
```python
from transformers import pipeline

print(pipeline("{pipeline}", model="{name}")({example}))
```"""
_USE_ANSWERS = """\
```python
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForQuestionAnswering.from_pretrained("{name}", dtype="auto")
{lines}
```"""
_USE_SCORER = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForSequenceClassification.from_pretrained("{name}", dtype="auto")
messages = [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}]
text = tokenizer.apply_chat_template(messages, tokenize=False).rstrip()  # up to the answer's stop token
with torch.no_grad():
    print(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits.item())
```

Scores compare answers to one prompt, a higher one being preferred; they have no zero and no unit of their own."""


def write_merged_card(
    folder: Path,
    adapters: list[Path],
    base: dict[str, Any],
    record: dict[str, Any],
    found: Drift | None,
    name: str,
) -> None:
    """Write README.md of an export.

    Args:
        record: As proof.json keeps it: `kind`, `adapters`, and for merges `base_kind`.
        found: The proof's figures, or None without a proof.
    """
    method = record.get("task", {}).get("method")
    pipeline = TASKS[method].pipeline if method else CAUSAL.pipeline
    if method == "question_answering":
        use = _USE_ANSWERS.format(name=name, lines=answer_lines(record["task"], adapted=False))
    else:
        use = _USE.format(name=name)
        use = _USE_TASK.format(pipeline=pipeline, name=name, example=EXAMPLES[method]) if method else use
    _write(folder, adapters, base, record, pipeline, use, _proof(found), name)


def write_scorer_card(
    folder: Path,
    adapters: list[Path],
    base: dict[str, Any],
    record: dict[str, Any],
    found: ScoreDrift | None,
    name: str,
) -> None:
    """Write README.md of a reward model's merge; the arguments are those of `write_merged_card`."""
    proof = _score_proof(found)
    _write(folder, adapters, base, record, "text-classification", _USE_SCORER.format(name=name), proof, name)


def _write(
    folder: Path,
    adapters: list[Path],
    base: dict[str, Any],
    record: dict[str, Any],
    pipeline: str,
    use: str,
    proof: str,
    name: str,
) -> None:
    kind = record["kind"]
    names = ", ".join(f"`{one}`" for one in record["adapters"])
    text = _CARD.format(
        base=base["name"],
        base_link=f"[{base['name']}]({HUB}{base['name']})" if base["revision"] else f"`{base['name']}`",
        library="transformers" if not kind.startswith("gguf") else "gguf",
        tags=", ".join(dict.fromkeys(["lorasmith", kind.replace(":", "-")])),
        name=name,
        what="The merge" if kind == "merged" else f"A {kind} export of the merge",
        adapters=names,
        use=use,
        proof=proof,
        pipeline=pipeline,
        base_licence=licence(Path(base["folder"])),
        adapter_licence="; ".join(dict.fromkeys(licence(one) for one in adapters)),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def licence(folder: Path) -> str:
    """The licence that a folder's card names."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = text.split("---")[1] if text.startswith("---") and text.count("---") >= 2 else ""
    found = re.search(r"^licen[sc]e(?:_name)?:\s*(.+)$", head, re.MULTILINE)
    return found[1].strip() if found else "not said in its card"


def _score_proof(found: ScoreDrift | None) -> str:
    if found is None:
        return "None: it was not compared with the live adapter."
    return f"""\
On {found.pairs} held-out pairs, against the live adapter as it was trained:

| | |
|---|---|
| pairs in the same order | {found.order:.1%} |
| largest difference of a score | {found.difference:.5f} standard deviations of the scores |
| preferred answers that score higher | {found.accuracy_live:.1%} live, {found.accuracy:.1%} here |
| chat template | {"the same ids" if found.template else "other ids"} |"""


def _proof(found: Drift | None) -> str:
    if found is None:
        return "None: it was not compared with the live adapter."
    speed = f"\n| greedy answers | {found.tokens_per_second:,.1f} tokens/s |" if found.tokens_per_second else ""
    return f"""\
On {found.rows} rows ({found.positions} tokens) by {found.engine}, against the live adapter as it was trained:

| | |
|---|---|
| same token first | {found.top1:.1%} |
| mean KL divergence | {found.kl_mean:.5f} nats a token (at most {found.kl_max:.4f}) |
| loss | {found.loss_live:.4f} live, {found.loss:.4f} here |
| chat template | {"the same ids" if found.template else "other ids"} |{speed}"""
