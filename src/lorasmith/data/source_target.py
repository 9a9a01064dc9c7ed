"""Rows of a source and the target that is to be written for it, in the formats that sft.py reads."""

from typing import Any

from lorasmith.data.files import records
from lorasmith.data.formats import NEEDED, check_record, parse_row, question_text, read_rows, renamed, text_field
from lorasmith.data.messages import DROP, checked_messages
from lorasmith.data.rows import ASSISTANT, Read, Row
from lorasmith.errors import DataError

ALONE = ("source", "prompt", "instruction", "question", "messages")  # columns that a source may stand in


def read_source_target(
    source: str,
    subset: str | None = None,
    split: str = "train",
    *,
    kind: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
) -> Read:
    """All rows of a source; the arguments are those of `formats.read_rows`.

    Raises:
        DataError: At the first row that is broken or no source with a target, naming its line.
    """
    found = read_rows(source, subset, split, kind=kind, columns=columns, on_bad_row=on_bad_row)
    rows, rejected = [], list(found.rejected)
    for row in found.rows:
        try:
            rows.append(as_source_target(row))
        except DataError as error:
            if on_bad_row == "error":
                raise
            rejected.append(str(error))
    if not rows:
        raise DataError(f"{source}: no row has a source and a target. The first: {rejected[0]}")
    return Read(rows, found.kind, rejected)


def as_source_target(row: Row) -> Row:
    """A row of any format as plain texts: `prompt` is the source, `completion` the target.

    Raises:
        DataError: If it is plain text, or a conversation of more than a question and its answer.
    """
    if row.text:
        raise DataError(
            f"{row.place}: text: plain text has no target. Map your columns: data.columns={{prompt: ..., "
            "completion: ...}."
        )
    if not row.messages:
        return row
    roles = [message["role"] for message in row.messages]
    if roles != ["user", ASSISTANT] or row.tools:
        told = f"{len(roles)} turns ({', '.join(roles[:4])}{', ...' if len(roles) > 4 else ''})"
        told = "tools" if roles == ["user", ASSISTANT] else told
        raise DataError(f"{row.place}: {told}; expected one turn of the user and one of the assistant. {DROP}")
    asked, answered = (str(message["content"]) for message in row.messages)
    for name, text in (("user", asked), (ASSISTANT, answered)):
        if not text.strip():
            raise DataError(f"{row.place}: the turn of the {name}: empty. {DROP}")
    return Row(row.place, prompt=asked, completion=answered)


def read_sources(source: str, columns: dict[str, str] | None = None) -> list[Row]:
    """Rows to be written for: a source each, with or without a target.

    Raises:
        DataError: At the first row without a source.
    """
    rows = []
    for place, value in records(source):
        record = renamed(value, columns or {})
        check_record(record, place)
        kind = next((kind for kind, names in NEEDED.items() if all(name in record for name in names)), "text")
        if kind in ("text", "marked-text") or (kind == "messages" and not _answered(record["messages"])):
            rows.append(Row(place, prompt=_source(record, place)))
        else:
            rows.append(as_source_target(parse_row(kind, record, place)))
    if not rows:
        raise DataError(f"{source}: no rows. Give at least one.")
    return rows


def _answered(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == ASSISTANT


def _source(record: dict[str, Any], place: str) -> str:
    """The source of a record that has no target."""
    name = next((name for name in ALONE if name in record), None)
    if name is None:
        raise DataError(f"{place}: no source; expected one of the fields {', '.join(ALONE)}. Map it: data.columns.")
    if name == "messages" or isinstance(record[name], list):
        turns = checked_messages(record[name], name, place)
        if [turn["role"] for turn in turns] != ["user"]:
            raise DataError(f"{place}: {name}: {len(turns)} turns; expected one of the user. {DROP}")
        return str(turns[0]["content"])
    asks = name in ("instruction", "question")
    return question_text(record, name, place) if asks else text_field(record, name, place)
