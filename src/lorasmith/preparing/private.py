"""Private data in a text: find e-mail addresses, numbers of people, accounts and devices, secrets; mask them."""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorasmith.errors import DataError
from lorasmith.preparing import private_contacts, private_ids, private_numbers, private_secrets, private_words
from lorasmith.preparing.private_context import KINDS, NUMBER, PLACEHOLDER, Span

DEFAULT_KINDS = frozenset(KINDS) - {"name", "address", "link"}
_KEY = re.compile(r"(\\?\") {0,2}: {0,2}$")
MOST_PASSES = 8  # over one text by a mask; the second nearly always finds nothing

_FINDERS: dict[str, Callable[[str], Iterator[Span]]] = {
    "url": private_secrets.urls,
    "secret": private_secrets.secrets,
    "email": private_contacts.emails,
    "iban": private_numbers.ibans,
    "card": private_numbers.cards,
    "national_id": private_ids.national_ids,
    "ip": private_numbers.ips,
    "phone": private_contacts.phones,
    "address": private_words.addresses,
    "name": private_words.names,
    "link": private_secrets.links,
}
_ORDER = {kind: place for place, kind in enumerate(_FINDERS)}  # of two equals the earlier kind is taken


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of private data: characters start to end, end not included."""

    kind: str
    start: int
    end: int


def find(text: str, kinds: frozenset[str]) -> list[Found]:
    """Private data of these kinds, in the order of the text, none over another.

    Where two would overlap, the more certain is taken, then the longer. Placeholders of an earlier mask are no data.
    """
    spans = [(kind, span) for kind in _possible(text, kinds) for span in _FINDERS[kind](text)]
    if not spans:
        return []
    spans.sort(key=lambda one: (-one[1][2], one[1][0] - one[1][1], _ORDER[one[0]], one[1][0]))
    return _apart(spans, [match.span() for match in PLACEHOLDER.finditer(text)])


def _possible(text: str, kinds: frozenset[str]) -> list[str]:
    """The kinds that a text can hold at all, told by signs that are cheap to look for."""
    signs = {
        "email": any(sign in text for sign in ("@", "at)", "at]", "AT)", "AT]")),
        "url": "://" in text,
        "link": "://" in text,
        "ip": text.count(".") >= 3 or text.count(":") >= 2,
    }
    has_number = bool(NUMBER.search(text))
    return [
        kind
        for kind in _FINDERS
        if kind in kinds and (has_number if kind in ("iban", "card", "national_id", "phone") else signs.get(kind, True))
    ]


def _apart(spans: list[tuple[str, Span]], held: list[tuple[int, int]]) -> list[Found]:
    """The spans that overlap neither an earlier one of the list nor a place that is held, which are in order."""
    starts, ends = [start for start, _ in held], [end for _, end in held]
    kept: list[Found] = []
    for kind, (start, end, _) in spans:
        place = bisect_left(starts, end)  # of those taken, the last that begins before this one ends
        if place and ends[place - 1] > start:
            continue
        starts.insert(place, start)
        ends.insert(place, end)
        kept.append(Found(kind, start, end))
    return sorted(kept, key=lambda one: one.start)


def _normal(kind: str, value: str) -> str:
    """What two writings of one value have in common."""
    if kind in ("phone", "card"):
        return re.sub("[^0-9]", "", value)
    if kind in ("iban", "national_id"):
        return re.sub(r"[\W_]", "", value).upper()
    if kind in ("email", "ip", "name", "address"):
        return " ".join(value.casefold().split())
    return value


def _quote(text: str, one: Found) -> str:
    """What must stand around the placeholder of a bare number behind a key of JSON, for the text to stay JSON."""
    key = _KEY.search(text[max(0, one.start - 8) : one.start])
    is_bare = text[one.start : one.end].isdigit() and text[one.end : one.end + 1] in ("", *",}] \n\\")
    return key.group(1) if key and is_bare else ""


class Masker:
    """Puts placeholders such as [EMAIL_1] for private data in the texts of one row.

    The same value gets the same placeholder in all of them, another value the next number; numbers that the texts
    already hold are left out.
    """

    def __init__(self, kinds: frozenset[str]) -> None:
        """Args: kinds: of KINDS. Raises: DataError: for a kind that is none."""
        if unknown := kinds - set(KINDS):
            raise DataError(f"kinds of private data: `{min(unknown)}` is none. Take some of {', '.join(KINDS)}.")
        self.kinds = kinds
        self.counts: dict[str, int] = {}
        self._given: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}

    def reserve(self, text: str) -> None:
        """Keep the placeholders that a text holds from being given; for the later texts of a row, before the first."""
        if "_" in text:
            self._taken.update(match.group() for match in PLACEHOLDER.finditer(text))

    def mask(self, text: str) -> str:
        """The text with a placeholder for each piece of private data, so that nothing is found in it any more."""
        for _ in range(MOST_PASSES):
            found = find(text, self.kinds)
            if not found:
                return text
            self.reserve(text)
            pieces, done = [], 0
            for one in found:
                quote = _quote(text, one)
                pieces += [text[done : one.start], quote, self._placeholder(one.kind, text[one.start : one.end]), quote]
                done = one.end
            text = "".join([*pieces, text[done:]])
        return text

    def _placeholder(self, kind: str, value: str) -> str:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        key = (kind, _normal(kind, value))
        if key not in self._given:
            number = self._last.get(kind, 0) + 1
            while f"[{kind.upper()}_{number}]" in self._taken:
                number += 1
            self._last[kind] = number
            self._given[key] = f"[{kind.upper()}_{number}]"
        return self._given[key]
