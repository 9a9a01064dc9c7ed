"""One batch of raw rows made into a part: read, converted, cleaned, masked, and what later steps need to know of each.

A part is three files in the work folder: `N.jsonl` with the rows, `N.npz` with their numbers, and `N.json` with the
account. The account is written last, so that a part is whole where it exists.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorasmith.data import convert
from lorasmith.data.convert import answer_of
from lorasmith.data.files import line_record
from lorasmith.data.formats import renamed
from lorasmith.data.openai import problems
from lorasmith.data.pairs import judged_of
from lorasmith.errors import DataError
from lorasmith.preparation import Preparation
from lorasmith.preparing.account import Account, Kept
from lorasmith.preparing.clean import AROUND, Cleaner, excerpts, language
from lorasmith.preparing.contamination import Evaluations, met
from lorasmith.preparing.numbers import column_of, label_of, numbers
from lorasmith.preparing.private import Masker
from lorasmith.preparing.private_context import PLACEHOLDER
from lorasmith.preparing.sources import Batch, File
from lorasmith.preparing.summary import Change
from lorasmith.preparing.texts import content, everywhere
from lorasmith.preparing.tokens import token_counter
from lorasmith.preparing.words import Words

SHOWN = 300  # characters of a row in an example
HIDDEN = "█████"  # in place of what was masked


class Maker:
    """Makes parts of batches; one in each process.

    Args:
        kinds: Shape of each source's rows.
        known: Evaluation sets to keep out.
    """

    def __init__(
        self, recipe: Preparation, files: list[File], kinds: list[str], known: Evaluations, work: Path
    ) -> None:
        self.recipe, self.files, self.kinds, self.known, self.work = recipe, files, kinds, known, work
        self.words = Words()
        self._cleaners: dict[tuple[str, bool], Cleaner] = {}

    def make(self, batch: Batch) -> int:
        """Write the part of a batch and give its number of rows."""
        file = self.files[batch.file]
        account = Account(file.path, file.source)
        kept = self._screened(self._read(batch, file, account), account)
        lines, columns = self._written(kept, account)
        path = self.work / f"{batch.index:06d}"
        path.with_suffix(".jsonl").write_bytes(b"".join(lines))
        with path.with_suffix(".npz").open("wb") as out:
            np.savez(out, **columns)
        beside = path.with_suffix(".part")
        beside.write_text(json.dumps(asdict(account), ensure_ascii=False), encoding="utf-8", errors="replace")
        os.replace(beside, path.with_suffix(".json"))
        return account.rows

    def _read(self, batch: Batch, file: File, account: Account) -> list[Kept]:
        """The rows of a batch, converted and cleaned."""
        source = self.kinds[file.source]
        kind = source if file.reader != "documents" else "text"
        kept: list[Kept] = []
        for place, value in _records_of(batch, file):
            account.rows += 1
            try:
                kept += self._row(place, renamed(value, self.recipe.read.columns), kind, account)
            except DataError as error:
                if self.recipe.read.strict:
                    raise
                account.rejected.append((place, str(error).removeprefix(f"{place}: ")))
        return kept

    def _row(self, place: str, value: Any, kind: str, account: Account) -> list[Kept]:
        convert.check(value, kind, place)
        to = self.recipe.read.to
        if kind == "kto" and to not in (None, "kto") and not judged_of(value, place).label:
            self._remove(_line(place), place, "unwanted answer", answer_of(value, kind), account)  # it would be learnt
            return []
        made = convert.converted(value, kind, to, place)
        rows = [self._cleaned(place, record, to or kind, kind in ("preference", "kto"), account) for record in made]
        return [row for row in rows if row is not None]

    def _cleaned(self, place: str, record: dict[str, Any], kind: str, judged: bool, account: Account) -> Kept | None:
        if kind == "openai" and (wrong := problems(record, place)):
            raise DataError(f"{place}: {wrong[0].removeprefix(f'{place}: ')}")
        cleaner = self._cleaner(kind, judged)
        line = _line(place)
        raw = "\n".join(content(record, cleaner.fields))
        if len(raw) > self.recipe.clean.max_characters:  # before it is searched for what may be broken
            self._remove(line, place, "too long", raw[:SHOWN], account)
            return None
        record, changes = cleaner.row(record)
        texts = content(record, cleaner.fields)
        split = self.recipe.split
        column = column_of(record, split.column, place) if split.by != "hash" else ""
        asks = self.recipe.clean.languages or self.recipe.report.languages
        spoken = language(" ".join(texts)) if asks else ""
        reason = cleaner.refusal(record, _only_answer(record, kind), spoken)
        if reason:
            self._remove(line, place, reason, "\n".join(texts), account)
            return None
        if changes:
            convert.check(record, kind, place)
            account.changed += 1
        for name, (before, after) in changes.items():
            change = account.changes.setdefault(name, Change())
            change.rows += 1
            if len(change.examples) < self.recipe.report.examples:
                # Masked before it is cut: half an item would not be known for one.
                old, new = excerpts(self._masked(before), self._masked(after))
                change.examples.append({"place": place, "before": old, "after": new})
        asked = convert.prompt_of(record, kind)
        return Kept(line, record, raw, texts, asked, place, label_of(record, split.label), column, spoken)

    def _cleaner(self, kind: str, judged: bool) -> Cleaner:
        if (kind, judged) not in self._cleaners:
            self._cleaners[kind, judged] = Cleaner(self.recipe.clean, kind, convert.text_fields(kind), judged)
        return self._cleaners[kind, judged]

    def _masked(self, text: str) -> str:
        return Masker(self.recipe.private.wanted).mask(text)

    def _remove(self, line: int, place: str, reason: str, text: str, account: Account) -> None:
        account.removed.append((line, reason))
        shown = account.examples.setdefault(reason, [])
        if len(shown) < self.recipe.report.examples:
            shown.append({"place": place, "text": self._masked(text[: 2 * SHOWN])[:SHOWN]})

    def _screened(self, rows: list[Kept], account: Account) -> list[Kept]:
        """The rows that meet no evaluation set."""
        if not self.known.names:
            return rows
        asked = [[row.prompt, *(text for text in row.texts if text != row.prompt)] for row in rows]
        found = met(self.known, self.words, asked)
        for i, (name, how) in found.items():
            account.met.append((rows[i].line, name, how))
            self._remove(rows[i].line, rows[i].place, "contaminated", "\n".join(rows[i].texts), account)
        return [row for i, row in enumerate(rows) if i not in found]

    def _written(self, rows: list[Kept], account: Account) -> tuple[list[bytes], dict[str, Any]]:
        """The rows as lines, masked, and their numbers."""
        wanted = self.recipe.private.wanted
        lines: list[bytes] = []
        kept: list[Kept] = []
        for row in rows:
            counts = self._mask(row) if wanted else {}
            if counts and self.recipe.private.action == "drop":
                self._remove(row.line, row.place, "private data", "\n".join(row.texts), account)
                continue
            try:
                text = json.dumps(row.record, ensure_ascii=False, default=str, allow_nan=False)
                lines.append(text.encode("utf-8") + b"\n")
            except ValueError:
                account.rejected.append((row.place, "half of a character, or a number that is none, in a column."))
                continue
            if counts:
                account.masked += [(len(kept), kind, count) for kind, count in sorted(counts.items())]
                self._show_mask(row, account)
            kept.append(row)
        return lines, numbers(self.recipe, self.words, self.count_tokens, kept, lines, account)

    def _mask(self, row: Kept) -> dict[str, int]:
        """Mask a row, one item as the same placeholder all through it, and count the items by kind."""
        masker = Masker(self.recipe.private.wanted)

        def reserve(text: str) -> str:
            masker.reserve(text)
            return text

        if any(PLACEHOLDER.search(text) for text in row.texts):
            everywhere(row.record, reserve)
        row.record = everywhere(row.record, masker.mask)
        return masker.counts

    def _show_mask(self, row: Kept, account: Account) -> None:
        """An excerpt around the first masked item of a row, which the page never shows itself."""
        if len(account.masks_shown) >= self.recipe.report.examples:
            return
        masked = self._masked("\n".join(row.texts))
        found = PLACEHOLDER.search(masked)
        if found:
            start, end = max(0, found.start() - AROUND), found.end() + AROUND
            after = ("…" if start else "") + masked[start:end] + ("…" if len(masked) > end else "")
            account.masks_shown.append({"place": row.place, "before": PLACEHOLDER.sub(HIDDEN, after), "after": after})

    @cached_property
    def count_tokens(self) -> Callable[[list[str]], list[int]]:
        """Tokens of texts by the named tokenizer; zeros where none is named."""
        return token_counter(self.recipe.report.tokenizer)


def _records_of(batch: Batch, file: File) -> list[tuple[str, Any]]:
    if not batch.lines:
        return batch.records
    found = [line_record(file.path, number, line) for number, line in enumerate(batch.lines, batch.first)]
    return [one for one in found if one is not None]


def _line(place: str) -> int:
    number = place.rpartition(":")[2]
    return int(number) if number.isdigit() else 0


def _only_answer(record: dict[str, Any], kind: str) -> str:
    """The answer of a row that has one alone and calls no tools; a conversation may well decline in between."""
    turns = record.get("messages", record.get("conversations"))
    if isinstance(turns, list):
        spoken = [one for one in turns if one.get("role", one.get("from")) in ("assistant", "gpt")]
        if len(spoken) != 1 or record.get("tools"):
            return ""
    return answer_of(record, kind)
