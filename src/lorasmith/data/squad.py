"""Questions whose answers stand in a context: flat rows, or the nested files of SQuAD 1.1 and 2.0."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorasmith.data.files import BROKEN, Record, file_kind, records, texts_of
from lorasmith.data.formats import check_record, text_field
from lorasmith.data.json_list import LONGEST
from lorasmith.data.messages import DROP, checked_text, named_kind
from lorasmith.data.offsets import misplaced
from lorasmith.data.pairs import Found, content_hash, found_among
from lorasmith.data.strict_json import NotJson, parse_json, shown
from lorasmith.errors import DataError

COLUMNS = ("question", "context", "answers")
_ANSWERS = "{text: [...], answer_start: [...]} or a list of {text, answer_start}"


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        place: `file:line`, or the path inside a nested file, to name in errors.
        id: Of the question, no other row's; the place where the file gives none.
        answers: Each answer's text and where it stands in the context, in characters; empty if it cannot be answered,
            None where answers are not given.
    """

    place: str
    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] | None

    @cached_property
    def prompt_key(self) -> str:
        """The context; questions about one context must not straddle a split."""
        return self.context

    @cached_property
    def digest(self) -> str:
        """Hash of the content, wherever the row stands."""
        return content_hash(self.question, self.context, self.answers)


def read_questions(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
    need_answers: bool = True,
) -> Found[Question]:
    """Read all questions of a file, folder or hub data set; the other arguments are those of `formats.read_rows`.

    Args:
        need_answers: Whether a row without `answers` is broken; a question without an answer has an empty list.

    Raises:
        DataError: At the first row that is broken, naming its line, or if none is left.
    """
    places: dict[str, str] = {}

    def parse(record: Any, place: str) -> Question:
        found = question_of(record, place, need_answers)
        if found.id in places:
            raise DataError(f"{place}: id: `{shown(found.id)}` is that of {places[found.id]} too. {DROP}")
        places[found.id] = place
        return found

    return found_among(parse, _flat(source, subset, split), source, columns or {}, on_bad_row)


def question_of(record: Any, place: str, need_answers: bool = True) -> Question:
    """A checked question.

    Raises:
        DataError: Naming the place and the field that is wrong.
    """
    check_record(record, place)
    missing = [name for name in COLUMNS if record.get(name) is None and (name != "answers" or need_answers)]
    if missing:
        given = f"field `{missing[0]}` is missing; expected {', '.join(COLUMNS)}"
        raise DataError(f"{place}: {given}. Add it, or map the columns with data.columns.")
    question, context = text_field(record, "question", place), text_field(record, "context", place)
    answers = None if record.get("answers") is None else _answers(record["answers"], context, place)
    impossible = record.get("is_impossible")
    if impossible is not None and answers is not None:
        if not isinstance(impossible, bool):
            raise DataError(f"{place}: is_impossible: {named_kind(impossible)}; expected true or false. {DROP}")
        if impossible == bool(answers):
            found = f"{len(answers)} answers" if answers else "no answer"
            raise DataError(f"{place}: is_impossible: {str(impossible).lower()}, but {found} given. {DROP}")
    return Question(place, _id(record.get("id"), place), question, context, answers)


def _id(value: Any, place: str) -> str:
    if value is None:
        return place
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not checked_text(value, "id", place).strip():
        raise DataError(f"{place}: id: empty. {DROP}")
    return str(value)


def _answers(value: Any, context: str, place: str) -> tuple[tuple[str, int], ...]:
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list):
            raise DataError(f"{place}: answers: no lists of text and answer_start; expected {_ANSWERS}. {DROP}")
        if len(texts) != len(starts):
            raise DataError(f"{place}: answers: {len(texts)} texts, but {len(starts)} starts. {DROP}")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list):
        raise DataError(f"{place}: answers: {named_kind(value)}; expected {_ANSWERS}. {DROP}")
    return tuple(_answer(answer, context, f"answers[{i}]", place) for i, answer in enumerate(value))


def _answer(answer: Any, context: str, name: str, place: str) -> tuple[str, int]:
    if not isinstance(answer, dict):
        raise DataError(f"{place}: {name}: {named_kind(answer)}; expected {{text, answer_start}}. {DROP}")
    text, start = checked_text(answer.get("text"), f"{name}.text", place), answer.get("answer_start")
    if not text.strip():
        raise DataError(f"{place}: {name}.text: empty; a question without an answer has an empty list. {DROP}")
    if isinstance(start, bool) or not isinstance(start, int):
        raise DataError(f"{place}: {name}.answer_start: {named_kind(start)}; expected a character's number. {DROP}")
    if wrong := misplaced(context, text, start):
        raise DataError(f"{place}: {name}: {wrong}")
    return text, start


def _flat(source: str, subset: str | None, split: str) -> Iterator[Record]:
    """The records of a source, those that are nested as in SQuAD's own files one a question."""
    whole = _whole(Path(source))
    for place, value in records(source, subset, split) if whole is None else [whole]:
        if isinstance(value, dict) and isinstance(value.get("data"), list):
            yield from _nested(value["data"], place.rpartition(":")[0])
        else:
            yield place, value


def _whole(path: Path) -> Record | None:
    """A JSON file that is one object, which may go over several lines, unlike a row."""
    if not path.is_file() or file_kind(path) != ".json" or path.stat().st_size > LONGEST:
        return None
    try:
        text = "".join(texts_of(path)).lstrip()
        value = parse_json(text) if text.startswith("{") else None
    except NotJson as error:
        if text.partition("\n")[0].strip() != "{":
            return None  # rows of one line each, which are read one by one
        raise DataError(f"{path}:{error.line}: not valid JSON ({error}). Fix the file.") from None
    except (*BROKEN, DataError):
        return None  # told by `records`
    return None if value is None else (f"{path}:1", value)


def _nested(articles: list[Any], path: str) -> Iterator[Record]:
    """One record a question; what is nested wrongly comes as an error in its place."""
    for a, article in enumerate(articles):
        place = f"{path}:data[{a}]"
        for p, paragraph in enumerate(_parts(article, "paragraphs", place)):
            where = f"{place}.paragraphs[{p}]"
            if isinstance(paragraph, DataError):
                yield where, paragraph
                continue
            for q, asked in enumerate(_parts(paragraph, "qas", where)):
                here = f"{where}.qas[{q}]"
                if isinstance(asked, dict):
                    yield here, {"context": paragraph.get("context"), **asked}
                else:
                    yield here, asked


def _parts(value: Any, name: str, place: str) -> list[Any]:
    if not isinstance(value, dict) or not isinstance(value.get(name), list):
        found = named_kind(value.get(name)) if isinstance(value, dict) else named_kind(value)
        return [DataError(f"{place}: {name}: {found}; expected a list, as in SQuAD's files. Fix the file.")]
    return list(value[name])
