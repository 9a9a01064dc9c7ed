"""Rows of words with a tag each, or of raw text with labelled spans, for entities and other labels of words."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from lorasmith.data.formats import check_record
from lorasmith.data.messages import DROP, checked_text, named_kind
from lorasmith.data.offsets import Offsets, joined, misplaced, words_of
from lorasmith.data.pairs import Found, content_hash, found_in
from lorasmith.data.strict_json import shown
from lorasmith.errors import DataError

OUTSIDE = "O"
# Of several columns in a row, the first counts.
WORDS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels")
TEXTS = ("text", "full_text")
SPANS = ("spans", "entities")
STARTS, ENDS = ("start", "start_position"), ("end", "end_position")
LABELS = ("label", "entity_type", "entity_group", "type")
VALUES = ("text", "value", "entity_value", "word")
_EXPECTED = "tokens+ner_tags or text+spans"


@dataclass(frozen=True)
class Tagged:
    """Words with a tag each.

    Attributes:
        place: `file:line`, to name in errors.
        tags: As many as words: BIO tags such as `B-person`, or plain ones such as `NOUN`; None where none are given.
        raw: The text that the words stand in, or None where words were given.
        raw_offsets: Where the words stand in `raw`.
        widened: Spans that began or ended inside a word, which counts as a whole.
    """

    place: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    raw: str | None = None
    raw_offsets: Offsets = ()
    widened: int = 0

    @cached_property
    def standing(self) -> tuple[str, Offsets]:
        """The text, which is the words with spaces between them where no raw one is, and where each word stands."""
        return joined(self.words) if self.raw is None else (self.raw, self.raw_offsets)

    @cached_property
    def prompt_key(self) -> str:
        """What the model is shown; equal for rows that must not straddle a split."""
        return json.dumps(self.words)

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        return content_hash(self.words, self.tags)


def read_tagged(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
    names: Sequence[str] | None = None,
    need_tags: bool = True,
) -> Found[Tagged]:
    """Read all tagged rows of a file, folder or hub data set; the other arguments are those of `formats.read_rows`.

    Args:
        names: Of the tags, in the order of their numbers, for rows that have numbers in their place.
        need_tags: Whether a row without tags is broken.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    parse = partial(tagged_of, names=names, need_tags=need_tags)
    return found_in(parse, source, subset, split, columns or {}, on_bad_row)


def tagged_of(record: Any, place: str, names: Sequence[str] | None = None, need_tags: bool = True) -> Tagged:
    """A checked row of words and tags, or of a text and its spans.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(record, place)
    if (words_name := _first(WORDS, record)) is not None:
        words = _words(record[words_name], words_name, place)
        tags_name = _first(TAGS, record)
        if tags_name is None and need_tags:
            raise DataError(f"{place}: field `ner_tags` is missing; expected a tag for each word. {DROP}")
        tags = None if tags_name is None else _tags(record[tags_name], tags_name, place, names)
        if tags is not None and len(tags) != len(words):
            raise DataError(f"{place}: {tags_name}: {len(tags)} tags for {len(words)} words. {DROP}")
        return Tagged(place, words, tags)
    text_name, spans_name = _first(TEXTS, record), _first(SPANS, record)
    if text_name is None or (spans_name is None and need_tags):
        given = f"columns [{shown(', '.join(record), 200)}]; expected {_EXPECTED}"
        raise DataError(f"{place}: {given}. Rename them, or map them with data.columns.")
    text = checked_text(record[text_name], text_name, place)
    offsets = words_of(text)
    if not offsets:
        raise DataError(f"{place}: {text_name}: {'without a word' if text.strip() else 'empty'}. {DROP}")
    words = tuple(text[start:end] for start, end in offsets)
    if spans_name is None:
        return Tagged(place, words, None, text, offsets)
    tags, widened = _span_tags(text, offsets, _spans(record[spans_name], text, spans_name, place), place)
    return Tagged(place, words, tags, text, offsets, widened)


def labels_of(rows: Iterable[Tagged]) -> list[str]:
    """All tags of rows, sorted: `O` first, then B- and I- of each kind, both even where one of them was not seen.

    Raises:
        DataError: If some rows have BIO tags and others plain ones.
    """
    places: dict[str, str] = {}
    for row in rows:
        for tag in row.tags or ():
            places.setdefault(tag, row.place)
    kinds = {tag[2:] for tag in places if is_bio(tag)}
    plain = [tag for tag in places if tag != OUTSIDE and not is_bio(tag)]
    if kinds and plain:
        raise DataError(
            f"{places[plain[0]]}: the tag `{shown(plain[0])}` is plain, those of other rows begin with B- and I-. "
            "Use one kind of tags."
        )
    if kinds:
        return [OUTSIDE, *(f"{part}-{kind}" for kind in sorted(kinds) for part in "BI")]
    return sorted(places, key=lambda tag: (tag != OUTSIDE, tag))


def is_bio(tag: str) -> bool:
    """Whether a tag begins or continues an entity."""
    return tag.startswith(("B-", "I-"))


def _first(names: Sequence[str], record: dict[str, Any]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _list(value: Any, name: str, place: str, of: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{place}: {name}: {named_kind(value)}; expected a list of {of}. {DROP}")
    return value


def _words(value: Any, name: str, place: str) -> tuple[str, ...]:
    found = _list(value, name, place, "words")
    if not found:
        raise DataError(f"{place}: {name}: empty; expected a list of words. {DROP}")
    for i, word in enumerate(found):
        if not checked_text(word, f"{name}[{i}]", place).strip():
            raise DataError(f"{place}: {name}[{i}]: empty; a word has at least one character. {DROP}")
    return tuple(found)


def _tags(value: Any, name: str, place: str, names: Sequence[str] | None) -> tuple[str, ...]:
    found = [_tag(tag, f"{name}[{i}]", place, names) for i, tag in enumerate(_list(value, name, place, "tags"))]
    bio = [tag for tag in found if is_bio(tag)]
    if not bio and not any(tag.startswith(("E-", "S-", "L-", "U-")) for tag in found):
        return tuple(found)
    before = OUTSIDE
    for i, tag in enumerate(found):
        here = f"{place}: {name}[{i}]: `{shown(tag)}`"
        if tag.startswith(("E-", "S-", "L-", "U-")):
            right = "I" if tag[0] in "EL" else "B"
            raise DataError(f"{here} is of the BIOES or BILOU scheme; expected BIO. Write it {right}-{shown(tag[2:])}.")
        if tag != OUTSIDE and (not is_bio(tag) or not tag[2:].strip()):
            raise DataError(f"{here} among BIO tags; expected O, or B- or I- and a kind. {DROP}")
        if tag.startswith("I-") and before[2:] != tag[2:]:
            raise DataError(
                f"{here} continues nothing, since `{shown(before)}` stands before it. Write B- at the start of each "
                "entity, or set data.on_bad_row: drop."
            )
        before = tag
    return tuple(found)


def _tag(tag: Any, name: str, place: str, names: Sequence[str] | None) -> str:
    if isinstance(tag, int) and not isinstance(tag, bool):
        if names is None:
            raise DataError(
                f"{place}: {name}: a number; expected a tag such as B-person. Name the tags in task.labels."
            )
        if not 0 <= tag < len(names):
            raise DataError(f"{place}: {name}: {tag}, but {len(names)} tags are named, from 0 on. {DROP}")
        return names[tag]
    if not checked_text(tag, name, place).strip():
        raise DataError(f"{place}: {name}: empty; write O where there is nothing. {DROP}")
    return str(tag)


def _spans(value: Any, text: str, name: str, place: str) -> list[tuple[int, int, str, str]]:
    """Start, end, label and name of each span, in the order of the text."""
    found = [_span(span, text, f"{name}[{i}]", place) for i, span in enumerate(_list(value, name, place, "spans"))]
    found.sort(key=lambda span: span[:2])
    for (start, end, _, first), (begins, ends, _, second) in itertools.pairwise(found):
        if begins < end:
            raise DataError(
                f"{place}: {second}: {begins} to {ends} overlaps {first}, {start} to {end}; a word has one tag. {DROP}"
            )
    return found


def _span(span: Any, text: str, name: str, place: str) -> tuple[int, int, str, str]:
    if isinstance(span, list) and len(span) == 3:
        span = {"start": span[0], "end": span[1], "label": span[2]}
    if not isinstance(span, dict):
        raise DataError(f"{place}: {name}: {named_kind(span)}; expected {{start, end, label}}. {DROP}")
    keys = {wanted[0]: _first(wanted, span) for wanted in (STARTS, ENDS, LABELS)}
    missing = [ours for ours, given in keys.items() if given is None]
    if missing:
        raise DataError(f"{place}: {name}: `{missing[0]}` is missing; expected {{start, end, label}}. {DROP}")
    start, end, label = (span[given] for given in keys.values() if given is not None)
    for given, at in ((keys["start"], start), (keys["end"], end)):
        if isinstance(at, bool) or not isinstance(at, int):
            raise DataError(f"{place}: {name}.{given}: {named_kind(at)}; expected a character's number. {DROP}")
    if not checked_text(label, f"{name}.{keys['label']}", place).strip():
        raise DataError(f"{place}: {name}.{keys['label']}: empty. {DROP}")
    value_name = _first(VALUES, span)
    if value_name is not None:
        value = checked_text(span[value_name], f"{name}.{value_name}", place)
        wrong = misplaced(text, value, start)
        if wrong:
            raise DataError(f"{place}: {name}: {wrong}")
        if end - start != len(value):
            raise DataError(f"{place}: {name}: {start} to {end}, but {len(value)} characters of {value_name}. {DROP}")
    if not 0 <= start < end <= len(text):
        raise DataError(f"{place}: {name}: {start} to {end} is no part of a text of {len(text)} characters. {DROP}")
    return start, end, label, name


def _span_tags(
    text: str, offsets: Offsets, spans: list[tuple[int, int, str, str]], place: str
) -> tuple[tuple[str, ...], int]:
    """A BIO tag for each word, and how many spans begin or end inside a word, which counts as a whole."""
    tags = [OUTSIDE] * len(offsets)
    at = widened = 0
    for start, end, label, name in spans:
        while at < len(offsets) and offsets[at][1] <= start:
            at += 1
        first = last = at
        while last < len(offsets) and offsets[last][0] < end:
            last += 1
        if first == last:
            raise DataError(f"{place}: {name}: `{shown(text[start:end], 30)}` has no word. {DROP}")
        if tags[first] != OUTSIDE:
            word = shown(text[slice(*offsets[first])], 30)
            raise DataError(f"{place}: {name}: begins inside `{word}`, where another ends; a word has one tag. {DROP}")
        widened += offsets[first][0] < start or offsets[last - 1][1] > end
        tags[first:last] = [f"B-{label}", *[f"I-{label}"] * (last - first - 1)]
    return tuple(tags), widened
