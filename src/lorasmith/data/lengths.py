"""How long the rows of a recipe are, from a quick look at the first of them; nothing here loads torch."""

import tempfile
from pathlib import Path
from typing import Any

from lorasmith.data.files import COMPRESSED
from lorasmith.data.formats import read_rows
from lorasmith.data.rows import Row
from lorasmith.hostile import check_template
from lorasmith.memory.facts import tokenizer_folder
from lorasmith.memory.plans import Rows
from lorasmith.recipe import Recipe
from lorasmith.templates import CHATML

LOOKED_AT = 1000  # rows
HEAD_BYTES = 4 << 20  # of a larger file
BYTES_A_TOKEN = 4  # of English in a vocabulary of 100,000 words, where no tokenizer is at hand
ASSUMED_ROWS = 1000  # where no rows are at hand


def sampled_rows(recipe: Recipe) -> Rows:
    """Lengths of the recipe's rows as its tokenizer and template give them, from the first rows of its local files.

    Where the files are not here, every row is taken to be as long as `trainer.max_length`.

    Raises:
        DataError: If a row that was looked at is broken.
    """
    longest = int(recipe.trainer["max_length"] or 0)
    found: list[Row] = []
    count, whole = 0, True
    for source, weight in recipe.data.sources:
        path = Path(source)
        if not path.is_file():
            continue
        rows, all_rows, complete = _head(path, recipe)
        found, count, whole = found + rows, count + round(all_rows * weight), whole and complete
    if not found:
        assumed = longest or 1024
        why = f"no rows here; {ASSUMED_ROWS:,} of max_length assumed"
        share = recipe.data.eval is not None or recipe.data.eval_fraction > 0
        return Rows([assumed] * 8, ASSUMED_ROWS, assumed, assumed, assumed if share else 0, why)
    kept = found[:: max(1, len(found) // LOOKED_AT)][:LOOKED_AT]
    lengths, supervised, how = _lengths(kept, recipe)
    cut = [min(one, longest) if longest else one for one in lengths]
    complete = whole and len(kept) == len(found)
    top = max(cut) if complete or not longest else longest
    evaluates = top if recipe.data.eval is not None or recipe.data.eval_fraction else 0
    train = count - round(count * recipe.data.eval_fraction)
    looked = "all rows" if complete else f"{len(kept):,} rows looked at, the longest taken as max_length"
    return Rows(cut, train, top, min(top, max(supervised)), evaluates, f"{looked}, {how}")


def _head(path: Path, recipe: Recipe) -> tuple[list[Row], int, bool]:
    """The first rows of a file, how many rows the whole file has or seems to have, and whether these are all."""
    section = recipe.data
    options: dict[str, Any] = {"kind": section.format, "columns": section.columns, "on_bad_row": section.on_bad_row}
    size = path.stat().st_size
    if size <= HEAD_BYTES or path.suffix != ".jsonl" or path.suffix in COMPRESSED:
        rows = read_rows(str(path), section.subset, section.split, **options).rows
        return rows, len(rows), True
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    head = head[: head.rfind(b"\n") + 1]
    if not head:
        rows = read_rows(str(path), section.subset, section.split, **options).rows
        return rows, len(rows), True
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / path.name
        part.write_bytes(head)
        rows = read_rows(str(part), section.subset, section.split, **options).rows
    return rows, round(len(rows) * size / len(head)), False


def _lengths(rows: list[Row], recipe: Recipe) -> tuple[list[int], list[int], str]:
    """Tokens and trained tokens of rows, and how they were counted."""
    folder = tokenizer_folder(recipe.model.name, recipe.model.revision)
    if folder is None or not (folder / "tokenizer.json").is_file():
        sizes = [sum(len(part.encode()) for part in _texts(row)) // BYTES_A_TOKEN + 8 for row in rows]
        return sizes, sizes, f"{BYTES_A_TOKEN} bytes a token, for want of the tokenizer"
    from transformers import PreTrainedTokenizerFast

    from lorasmith.data.render import tokenize

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    if recipe.model.chat_template == "chatml":
        tokenizer.chat_template = CHATML
    elif recipe.model.chat_template is not None:
        tokenizer.chat_template = Path(recipe.model.chat_template).read_text(encoding="utf-8")
    check_template(tokenizer, recipe.model.name)
    tokens = tokenize(tokenizer, rows, recipe.data.train_on, [])
    return [len(row.input_ids) for row in tokens], [row.supervised for row in tokens], "its own tokenizer"


def _texts(row: Row) -> list[str]:
    return [*(str(message["content"]) for message in row.messages), row.prompt, row.completion, row.text]
