"""How many tokens texts have, by a tokenizer that is named."""

from collections.abc import Callable
from pathlib import Path

from lorasmith.errors import DataError


def token_counter(name: str | None) -> Callable[[list[str]], list[int]]:
    """A function that counts the tokens of texts.

    Args:
        name: A tokenizer.json, a folder or hub id that has one; None: counts are 0.

    Raises:
        DataError: If it is not found.
    """
    if name is None:
        return lambda texts: [0] * len(texts)
    from tokenizers import Tokenizer

    from lorasmith.memory.facts import tokenizer_folder

    path = Path(name)
    if not path.is_file():
        folder = tokenizer_folder(name, "main")
        path = folder / "tokenizer.json" if folder is not None else path
    if not path.is_file():
        raise DataError(f"report.tokenizer: {name} has no tokenizer.json here. Name a folder or file that has one.")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(one.ids) for one in tokenizer.encode_batch(texts, add_special_tokens=False)]
