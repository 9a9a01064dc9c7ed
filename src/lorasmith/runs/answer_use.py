"""How an answer finder is used in plain transformers, for cards: it has no pipeline for questions any more."""

from typing import Any

from lorasmith.data.answer_spans import MAX_ANSWER_LENGTH

_LINES = """\
question, context = "...", "..."
given = tokenizer(question{after}, context, return_offsets_mapping=True, return_tensors="pt")
places = given.pop("offset_mapping")[0].tolist()
inside = torch.tensor([part == 1 for part in given.sequence_ids(0)])  # the context
with torch.no_grad():
    found = {called}(**given){why}
scores = found.start_logits[0][:, None] + found.end_logits[0]
allowed = (inside[:, None] & inside).triu().tril({last})  # up to {longest} tokens
start, end = divmod(int(scores.masked_fill(~allowed, -torch.inf).argmax()), len(inside))
{printed}"""
_ANSWER = "print(context[places[start][0] : places[end][1]].strip())"
_OR_NONE = """\
has_answer = scores[0, 0] - scores[start, end] <= {threshold}  # else no answer is likelier
print(context[places[start][0] : places[end][1]].strip() if has_answer else "")"""


def answer_lines(task: dict[str, Any], adapted: bool) -> str:
    """Code from a question and a context to the answer; `tokenizer`, `model` and torch are there.

    Args:
        task: task.json.
        adapted: Whether the model is peft's.
    """
    longest, threshold = task.get("max_answer_length", MAX_ANSWER_LENGTH), task.get("null_threshold")
    return _LINES.format(
        after=f" + {task['after_question']!r}" if task.get("after_question") else "",
        called="model.base_model" if adapted else "model",
        why="  # peft's own forward leaves token_type_ids out" if adapted else "",
        last=longest - 1,
        longest=longest,
        printed=_ANSWER if threshold is None else _OR_NONE.format(threshold=threshold),
    )


def windows_line(task: dict[str, Any]) -> str:
    """What is to be said of contexts that are too long."""
    if not task.get("max_length"):
        return ""
    return f" A question with its context that has over {task['max_length']} tokens is read by it in windows."
