"""Words of raw text, and where a part that is said to stand at a character stands instead."""

from lorasmith.data.messages import DROP
from lorasmith.data.strict_json import shown

Offsets = tuple[tuple[int, int], ...]  # start and end of each word, in characters

_JOINERS = "\u00ad\u200c\u200d\u2060"  # soft hyphen, and what joins letters or keeps them apart inside a word
_SCRIPTS = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar")
_UNSPACED = "(?:" + "|".join(rf"\p{{Script={name}}}" for name in _SCRIPTS) + ")"
_WORD = rf"(?!{_UNSPACED}|\p{{M}})\w(?:(?!{_UNSPACED})[\w\p{{M}}{_JOINERS}])*"
_SIGN = r"(?![\s\p{M}\p{Cc}\p{Cf}])\X"


def words_of(text: str) -> Offsets:
    """Where the words of raw text stand.

    A word is a run of letters, digits, their marks and `_`; any other character that can be seen is a word of its own,
    an emoji with all of its parts. In scripts that are written without spaces, each character is a word.
    """
    import regex

    return tuple(match.span() for match in regex.finditer(f"{_WORD}|{_SIGN}", text))


def joined(words: tuple[str, ...]) -> tuple[str, Offsets]:
    """Words with a space between them, and where each stands."""
    offsets, at = [], 0
    for word in words:
        offsets.append((at, at + len(word)))
        at += len(word) + 1
    return " ".join(words), tuple(offsets)


def misplaced(text: str, part: str, start: int) -> str:
    """What to say of a part that does not stand where it is said to, or nothing if it does.

    Args:
        start: Where it is said to stand, in characters.
    """
    if start >= 0 and text.startswith(part, start):
        return ""
    seen = f"outside the {len(text)} characters"
    if 0 <= start < len(text):
        seen = f"where `{shown(text[start : start + len(part)], 30)}` stands"
    found = f"`{shown(part, 30)}` does not stand at {start}, {seen}"
    places = _places(text, part)
    if not places:
        return f"{found}, nor anywhere else. {DROP}"
    for unit, encoding, size in (("UTF-16 units", "utf-16-le", 2), ("bytes of UTF-8", "utf-8", 1)):
        for place in places:
            if len(text[:place].encode(encoding)) // size == start:
                return f"{found}, but at {place}; it was counted in {unit}. Count characters (code points)."
    nearest = min(places, key=lambda place: abs(place - start))
    way = "after" if nearest > start else "before"
    distance = abs(nearest - start)
    return f"{found}, but at {nearest}, {distance} character{'s' if distance > 1 else ''} {way}. {DROP}"


def _places(text: str, part: str) -> list[int]:
    places, at = [], text.find(part)
    while at >= 0:
        places.append(at)
        at = text.find(part, at + 1)
    return places
