"""Tagged words to token ids, with the label on the first token of each word."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from lorasmith.data.audit import TOO_LONG_LIMIT, Account, quantiles, too_many
from lorasmith.data.messages import DROP
from lorasmith.data.render import BATCH, IGNORED, Ids, TokenRow
from lorasmith.data.strict_json import shown
from lorasmith.data.tagged import OUTSIDE, Tagged
from lorasmith.errors import DataError

SPACES = ("Ġ", "▁")  # how byte-level and sentencepiece vocabularies write a space alone


@dataclass(frozen=True, slots=True)
class WordTokens:
    """All words of one row as token ids, int32.

    Attributes:
        head: Special tokens before the words; `tail`: those behind.
        words: The index of the word that each token of `body` belongs to, ascending.
        firsts: The first token in `body` of each word that has one, ascending; a token that is but the space before the
            word does not count, since a decoder has seen nothing of the word there.
    """

    place: str
    head: Ids
    body: Ids
    tail: Ids
    words: Ids
    firsts: dict[int, int]

    def __len__(self) -> int:
        return len(self.head) + len(self.body) + len(self.tail)


def keeps_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word must come with the space before it to have the tokens that it has in running text.

    So it is with byte-level tokenizers that add no space themselves, such as those of GPT-2, Llama 3 and Qwen.
    """
    backend = tokenizer.backend_tokenizer

    def ids(text: str | list[str]) -> list[int]:
        found = backend.encode(text, is_pretokenized=isinstance(text, list), add_special_tokens=False)
        return list(found.ids)

    running = ids("one two")
    return ids(["one", "two"]) != running and ids(["one", " two"]) == running


def encode_words(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tagged]) -> list[WordTokens]:
    """The tokens of each row's words; a word of characters that the tokenizer drops has none."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    spaced = keeps_spaces(tokenizer)
    result = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        texts = [_pieces(row) if spaced else list(row.words) for row in batch]
        for row, encoding in zip(batch, backend.encode_batch(texts, is_pretokenized=True), strict=True):
            inside = [at for at, word in enumerate(encoding.word_ids) if word is not None]
            first, last = (inside[0], inside[-1] + 1) if inside else (len(encoding.ids), len(encoding.ids))
            ids = array("i", encoding.ids)
            words = array("i", encoding.word_ids[first:last])
            firsts = _firsts(words, encoding.tokens[first:last])
            result.append(WordTokens(row.place, ids[:first], ids[first:last], ids[last:], words, firsts))
    return result


def _firsts(words: Ids, tokens: list[str]) -> dict[int, int]:
    found: dict[int, int] = {}
    for at, word in enumerate(words):
        if word not in found or tokens[found[word]] in SPACES:
            found[word] = at
    return found


def _pieces(row: Tagged) -> list[str]:
    """The words, each with a space before it where white space stands there in the text."""
    text, offsets = row.standing
    spaces = (" " if start and text[start - 1].isspace() else "" for start, _ in offsets)
    return [space + word for space, word in zip(spaces, row.words, strict=True)]


def tokenize_tagged(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tagged],
    labels: Sequence[str],
    max_length: int | None,
    on_too_long: str,
    rejected: list[str] | None = None,
) -> tuple[list[TokenRow], Account]:
    """Rows to train on: the index of the tag in `labels` on the first token of each word, IGNORED elsewhere.

    Args:
        labels: All tags, in the order of the model's outputs.
        max_length: Tokens that a row may have, special ones included, or None for no limit.
        on_too_long: "error" drops up to 1 % of the rows and refuses above; "drop"; "truncate" cuts the last words off.
        rejected: Where refusals of rows with other tags go, which are then left out and counted in the account; by
            default the first one ends it.

    Raises:
        DataError: If a tag is not among the labels, too many rows are too long, or none is left.
    """
    account = Account(read=len(rows), max_length=max_length, labelled=True)
    rows = with_known_tags(rows, labels, rejected)
    if len(rows) < account.read:
        account.dropped["another tag"] = account.read - len(rows)
    ids = {label: i for i, label in enumerate(labels)}
    encoded = encode_words(tokenizer, rows)
    long = [row for row in encoded if max_length is not None and len(row) > max_length]
    if max_length is not None and on_too_long == "error" and len(long) > TOO_LONG_LIMIT * len(rows):
        raise too_many(long[0].place, len(long), sorted(map(len, encoded)), max_length)
    kept: list[TokenRow] = []
    cut = bare = 0
    for row, tokens in zip(rows, encoded, strict=True):
        end = len(tokens.body)
        over = max_length is not None and len(tokens) > max_length
        if over and on_too_long == "truncate":
            end = word_end(tokens, 0, max(0, max_length - len(tokens) + end))  # type: ignore[operator]
        labelled = {at: ids[row.tags[word]] for word, at in tokens.firsts.items() if at < end}  # type: ignore[index]
        reason = "too long" if over and on_too_long != "truncate" else "" if labelled else "nothing to train on"
        if reason:
            account.dropped[reason] = account.dropped.get(reason, 0) + 1
            continue
        account.truncated += over
        cut += len(tokens.firsts) - len(labelled)
        bare += len(row.words) - len(tokens.firsts)
        body = array("i", (labelled.get(at, IGNORED) for at in range(end)))
        around = [array("i", [IGNORED]) * len(part) for part in (tokens.head, tokens.tail)]
        kept.append(TokenRow(row.place, tokens.head + tokens.body[:end] + tokens.tail, around[0] + body + around[1]))
    if not kept:
        raise DataError(f"no row is left of {account.read}: {account.dropped}. Raise trainer.max_length.")
    account.trained = len(kept)
    account.tokens = sum(len(row.input_ids) for row in kept)
    account.supervised_tokens = sum(row.supervised for row in kept)
    account.length_quantiles = quantiles(sorted(len(row.input_ids) for row in kept))
    account.notes = _notes(rows, cut, bare)
    return kept, account


def _notes(rows: Sequence[Tagged], cut: int, bare: int) -> list[str]:
    widened = sum(row.widened for row in rows)
    told = []
    if cut:
        told.append(f"words: {cut:,} cut off at the end of rows over trainer.max_length")
    if bare:
        told.append(f"words: {bare:,} have no token, so that they are not trained and come out as {OUTSIDE}")
    if widened:
        told.append(f"spans: {widened:,} begin or end inside a word, which counts as a whole")
    return told


def with_known_tags(rows: Sequence[Tagged], labels: Sequence[str], rejected: list[str] | None) -> list[Tagged]:
    """The rows all of whose tags are among the labels; the others are told in `rejected`.

    Raises:
        DataError: At the first other one, where `rejected` is None.
    """
    known = set(labels)
    kept = []
    for row in rows:
        assert row.tags is not None, "rows to train on are read with their tags"
        i = next((i for i, tag in enumerate(row.tags) if tag not in known), None)
        if i is None:
            kept.append(row)
            continue
        expected = shown(", ".join(labels), 100)
        line = f"{row.place}: the tag of word {i + 1}: `{shown(row.tags[i])}`; expected one of {expected}. {DROP}"
        if rejected is None:
            raise DataError(line)
        rejected.append(line)
    return kept


def word_end(tokens: WordTokens, start: int, end: int) -> int:
    """The last place up to `end`, behind `start`, where a word ends; `end` inside a word that alone fills the room."""
    if end >= len(tokens.body):
        return len(tokens.body)
    at = end
    while at > start and tokens.words[at] == tokens.words[at - 1]:
        at -= 1
    return at if at > start else end
