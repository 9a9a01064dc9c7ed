"""How long the rows of a recipe are, from a quick look at the first of them; nothing here loads torch."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorasmith.data.answers import Said, asked_in, divided, last_answer
from lorasmith.data.files import COMPRESSED, records
from lorasmith.data.formats import check_record, read_rows, renamed
from lorasmith.data.pairs import Judged, Pair, read_judged, read_pairs
from lorasmith.data.rows import Row
from lorasmith.data.task_lengths import outputs_of, read_task, sizes_of
from lorasmith.errors import DataError
from lorasmith.hostile import check_template
from lorasmith.memory.facts import tokenizer_folder
from lorasmith.memory.methods import METHODS
from lorasmith.memory.setting import LONGEST_ROWS, Rows
from lorasmith.recipe import Recipe
from lorasmith.templates import CHATML
from lorasmith.upstream import TASKS

LOOKED_AT = 1000  # rows
HEAD_BYTES = 4 << 20  # of a larger file
BYTES_A_TOKEN = 4  # of English in a vocabulary of 100,000 words, where no tokenizer is at hand
ASSUMED_ROWS = 1000  # where no rows are at hand
ASSUMED_TARGET = 128  # tokens of a target, where the recipe says nothing
ASSUMED_PROMPT = 512  # tokens of a prompt, where no prompts are at hand and the recipe has no data.max_prompt_length


def sampled_rows(recipe: Recipe, method: str = "sft") -> Rows:
    """Lengths of the recipe's rows as its tokenizer and template give them, from the first rows of its local files.

    Where the files are not here, every row is taken to be as long as `trainer.max_length`, every prompt of grpo.py as
    `data.max_prompt_length`. A pair's two sequences are two lengths; of a prompt, nothing is trained.

    Args:
        method: The training script, which decides what the rows are.

    Raises:
        DataError: If a row that was looked at is broken.
    """
    reads, sequences = method if method in TASKS else METHODS[method].reads, METHODS[method].sequences
    key = "data.max_prompt_length" if reads == "prompts" else "max_length"
    longest = int((recipe.data.max_prompt_length if reads == "prompts" else recipe.trainer["max_length"]) or 0)
    found: list[Any] = []
    count, whole = 0, True
    for source, weight in recipe.data.sources:
        path = Path(source)
        if not path.is_file():
            continue
        rows, all_rows, complete = _head(path, recipe, reads)
        found, count, whole = found + rows, count + round(all_rows * weight), whole and complete
    if not found:
        assumed = longest or (ASSUMED_PROMPT if reads == "prompts" else 1024)
        why = f"no rows here; {ASSUMED_ROWS:,} of {key if longest else f'{assumed:,} tokens'} assumed"
        share = recipe.data.eval is not None or recipe.data.eval_fraction > 0
        count = sequences * ASSUMED_ROWS
        rows_assumed = Rows([assumed] * LONGEST_ROWS, count, assumed, assumed, assumed if share else 0, why)
        return _with_targets(rows_assumed, [], recipe, share) if method == "seq2seq" else rows_assumed
    kept = found[:: max(1, len(found) // LOOKED_AT)][:LOOKED_AT]
    sizes, how = _sizes(kept, recipe, reads)
    cut = [min(size, longest) if longest else size for size, _ in sizes]
    complete = whole and len(kept) == len(found)
    top = max(cut) if complete or not longest else longest
    evaluates = top if recipe.data.eval is not None or recipe.data.eval_fraction else 0
    train = sequences * (count - round(count * recipe.data.eval_fraction))
    looked = "all rows" if complete else f"{len(kept):,} rows looked at, the longest taken as {key}"
    supervised = min(top, max(trained for _, trained in sizes))
    prompt = min(top, max(size - trained for size, trained in sizes))
    if method in TASKS:
        labels = outputs_of(kept, recipe, method)
        train = round(train * len(sizes) / len(kept))  # a question may be several windows
        found_rows = Rows(cut, train, top, top, evaluates, f"{looked}, {how}", labels=labels)
        targets = [target for _, target in sizes]
        return _with_targets(found_rows, targets, recipe, evaluates > 0) if method == "seq2seq" else found_rows
    return Rows(cut, train, top, supervised, evaluates, f"{looked}, {how}", prompt)


def _with_targets(rows: Rows, targets: list[int], recipe: Recipe, evaluates: bool) -> Rows:
    """Sources with the tokens of their targets, all as long as they may be where none is at hand."""
    longest = int(recipe.trainer.get("max_target_length") or 0) or ASSUMED_TARGET
    cut = [min(one, longest) for one in targets] or [longest] * len(rows.lengths)
    return replace(rows, targets=tuple(cut), target=max(cut), eval_target=max(cut) if evaluates else 0)


def _head(path: Path, recipe: Recipe, reads: str) -> tuple[list[Any], int, bool]:
    """The first rows of a file, how many rows the whole file has or seems to have, and whether these are all."""
    size = path.stat().st_size
    if size <= HEAD_BYTES or path.suffix != ".jsonl" or path.suffix in COMPRESSED:
        rows = _read(path, recipe, reads)
        return rows, len(rows), True
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    head = head[: head.rfind(b"\n") + 1]
    if not head:
        rows = _read(path, recipe, reads)
        return rows, len(rows), True
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        part.write_bytes(head)
        try:
            rows = _read(part, recipe, reads)
        except DataError as error:
            raise DataError(str(error).replace(str(part), str(path))) from None
    return rows, round(len(rows) * size / len(head)), False


def _read(path: Path, recipe: Recipe, reads: str) -> list[Any]:
    section = recipe.data
    options: dict[str, Any] = {"columns": section.columns, "on_bad_row": section.on_bad_row}
    if reads in TASKS:
        return read_task(str(path), recipe, reads)
    if reads == "prompts":
        return list(_asked(path, recipe))
    if reads == "rows":
        return read_rows(str(path), section.subset, section.split, kind=section.format, **options).rows
    reader = read_pairs if reads == "pairs" else read_judged
    return list(reader(str(path), section.subset, section.split, **options).rows)


def _asked(path: Path, recipe: Recipe) -> list[Said]:
    """What each row of a file asks, its answer left aside, behind the recipe's system turn where it has none."""
    found: list[Said] = []
    for place, value in records(str(path), recipe.data.subset, recipe.data.split):
        try:
            check_record(value, place)
            record = renamed(value, recipe.data.columns)
            asked = asked_in(record, place) or divided(record, place, last_answer)[0]
        except DataError:
            if recipe.data.on_bad_row == "error":
                raise
            continue
        if recipe.data.system and not isinstance(asked, str) and asked[0].get("role") != "system":
            asked = [{"role": "system", "content": recipe.data.system}, *asked]
        found.append(asked)
    return found


def _sizes(rows: list[Any], recipe: Recipe, reads: str) -> tuple[list[tuple[int, int]], str]:
    """Tokens and trained tokens of each sequence, and how they were counted."""
    folder = tokenizer_folder(recipe.model.name, recipe.model.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        why = f"{BYTES_A_TOKEN} bytes a token, for want of the tokenizer"
        if reads in TASKS:
            return sizes_of(rows, recipe, reads, None), why
        return [size for row in rows for size in _sizes_by_bytes(row)], why
    from transformers import PreTrainedTokenizerFast

    from lorasmith.data.judged_tokens import tokenize_judged
    from lorasmith.data.pair_tokens import tokenize_pairs
    from lorasmith.data.render import tokenize

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if reads in TASKS:
        return sizes_of(rows, recipe, reads, tokenizer), "its own tokenizer"
    if recipe.model.chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif recipe.model.chat_template is not None:
        tokenizer.chat_template = Path(recipe.model.chat_template).read_text(encoding="utf-8")
    check_template(tokenizer, recipe.model.name)
    refused: list[str] = []
    if reads == "prompts":
        sizes = [(_prompt_tokens(tokenizer, asked), 0) for asked in rows]
    elif reads == "pairs":
        pairs = tokenize_pairs(tokenizer, rows, refused)
        sizes = [(len(row.input_ids), row.supervised) for pair in pairs for row in pair.rows()]
    elif reads == "judged":
        judged, _ = tokenize_judged(tokenizer, rows, None, "error", refused)
        sizes = [(len(row.prompt) + len(row.completion), len(row.completion)) for row in judged]
    else:
        tokens = tokenize(tokenizer, rows, recipe.data.train_on, refused)
        sizes = [(len(row.input_ids), row.supervised) for row in tokens]
    if not sizes:
        raise DataError(refused[0])
    return sizes, "its own tokenizer"


def _prompt_tokens(tokenizer: Any, asked: Said) -> int:
    """Tokens of a prompt, as a model is asked to go on with it."""
    if isinstance(asked, str):
        return len(tokenizer(asked)["input_ids"])
    encoded = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    return len(encoded["input_ids"])


def _sizes_by_bytes(row: Row | Pair | Judged | Said) -> list[tuple[int, int]]:
    """Tokens of each sequence of a row by its bytes; all may be trained tokens, but those of a prompt alone."""
    if isinstance(row, str | list):
        return [(sum(len(text.encode()) for text in _texts(row)) // BYTES_A_TOKEN + 8, 0)]
    if isinstance(row, Row):
        texts = [[*(str(message["content"]) for message in row.messages), row.prompt, row.completion, row.text]]
    else:
        answers = [row.completion] if isinstance(row, Judged) else [row.chosen, row.rejected]
        texts = [_texts(row.prompt) + _texts(answer) for answer in answers]
    sizes = [sum(len(text.encode()) for text in parts) // BYTES_A_TOKEN + 8 for parts in texts]
    return [(size, size) for size in sizes]


def _texts(said: Said) -> list[str]:
    return [said] if isinstance(said, str) else [str(turn.get("content")) for turn in said]
