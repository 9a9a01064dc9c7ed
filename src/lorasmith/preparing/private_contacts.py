"""Find e-mail addresses and phone numbers in a text."""

import functools
import re
from collections.abc import Iterator

from lorasmith.preparing.private_context import LIKELY, POSSIBLE, PROVEN, WRITTEN_OUT, Span, after, before

_EMAIL = re.compile(r"(?<![\w.%+'\-])[\w.%+'\-]{1,64}@\w[\w\-]{0,62}(?:\.\w[\w\-]{0,62}){1,8}")
_SPELT = re.compile(
    r"(?<![\w.+\-])[\w.+\-]{1,64} ?[\[(](?:at|AT)[\])] ?[\w\-]{1,63}"
    r"(?:\.[A-Za-z]{2,63}| ?[\[(](?:dot|DOT)[\])] ?[A-Za-z]{2,63}){1,4}"
)
_KEY = re.compile(r"\"([^\"\\]{1,30})\\?\" ?: ?(?:\\?\")?$")
_BETWEEN = r"(?:[\-./ \u00a0\u2010-\u2013]| / |\)[ \-]?|[ \-]?\()?"
_PHONE = re.compile(
    rf"(?<![0-9])(?<![\w/$€£#=*+^\-]{WRITTEN_OUT})(?<![0-9][ .,:])(?<![*+/^\u00d7] )"
    r"[+(]{0,2}[0-9](?:" + _BETWEEN + r"[0-9]){6,16}+"
    r"(?: ?(?:x|ext\.?|extension) ?[0-9]{1,6})?(?![\w%$€£]| ?[*+^=\u00d7]|[.,:/][0-9])"
    r"(?! (?:units|people|pixels|users|customers|dollars|euros|pounds|times|copies|points|views|devices|phones)\b)"
    r"(?! (?:km|kg|miles|meters|bytes|rows|words|tokens|per|percent|million|billion)\b)",
    re.IGNORECASE,
)
_EXTENSION = re.compile(r" ?(?:x|ext\.?|extension) ?[0-9]{1,6}$", re.IGNORECASE)
_NORTH_AMERICAN = re.compile(r"(?:1[\-. ])?(?:\([2-9][0-9]{2}\)[\- ]?|[2-9][0-9]{2}([\-. ]))[0-9]{3}[\-. ][0-9]{4}")
_DATE = re.compile(
    r"(?:1[5-9]|20)[0-9]{2}[\-./ ](?:[01]?[0-9][\-./ ][0-3]?[0-9]\b|(?:1[5-9]|20)[0-9]{2}$)"
    r"|[0-3]?[0-9][\-./ ][0-3]?[0-9][\-./ ](?:1[5-9]|20)[0-9]{2}\b|(?:1[5-9]|20)[0-9]{2}[01][0-9][0-3][0-9]$"
)
# Where most written text comes from; a national number is read as one of these if it has its trunk prefix.
_REGIONS = ("GB", "DE", "FR", "IT", "NL", "BE", "CH", "AT", "SE", "FI", "AU", "NZ", "IN", "ZA", "IL", "JP", "TR")


@functools.cache
def _words(where: str) -> re.Pattern[str]:
    named = (
        r"phone|\btele?\b|\btlf\b|\bcell\b|\bcellular|\bmobile?\b|\bmobil\b|\bfax\b|\bhotline|\bwhats ?app|\bsms\b|"
        r"\bhandy\b|\btelefo|\bm[oó]vil\b|\bcelular|\bportable\b|\btél\b|\bpuhelin|\bpager\b"
    )
    about = (
        r"\bcall(?:ed|ing|s)?\b|\bdial|\bring (?:me|us)\b|\btext(?:ing)? (?:me|us|him|her|them)\b|\bcontact|\breach|"
    )
    about += r"\banswering\b|\bmessages? (?:to|at)\b|\bdesk\b|\b(?:my|your|his|her|their|our) number\b|\bt:"
    after = r"^[ \-,(\\]{0,3}(?:office|fax|mobile|cell|home|work|desk|tel|phone)\b"
    return re.compile({"named": named, "about": about, "after": after}[where], re.IGNORECASE)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses, also with [at] and (dot); git@host is the name of a service."""
    yield from ((match.start(), match.end(), LIKELY) for match in _SPELT.finditer(text))
    for match in _EMAIL.finditer(text):
        local, _, domain = match.group().partition("@")
        start = match.end() - len(domain) - 1 - len(local.lstrip(".'%-+"))
        top = domain.rstrip("-").rpartition(".")[2]
        if text[start - 1 : start] == "\\" and text[start] in "nrt":  # the \\n of JSON in a text
            start += 1
        if local.lstrip(".'%-+") and local != "git" and top[:2].isalpha() and not top[:1].isdigit():
            yield start, match.end(), PROVEN


def phones(text: str) -> Iterator[Span]:
    """Phone numbers with a country code, North American ones, national ones, and others where words tell of a phone."""
    for match in _PHONE.finditer(text):
        window = before(text, match.start())
        if key := _KEY.search(window):  # of JSON: it says what the number is, not what stands before it
            window = key.group(1)
        named = bool(_words("named").search(window) or _words("after").search(after(text, match.end())))
        about = bool(_words("about").search(window))
        for end in _ends(match):
            certainty = _certainty(text[match.start() : end], named, about)
            if certainty:
                yield match.start(), end, certainty
                break


def _ends(match: re.Match[str]) -> Iterator[int]:
    """Where a number may end: at its last digit, or before a space inside, for what follows may be another number."""
    yield match.end()
    written = match.group()
    for place in range(len(written) - 1, 6, -1):
        if written[place] in " \u00a0" and written[place - 1].isdigit():
            yield match.start() + place


def _certainty(written: str, named: bool, about: bool) -> int:
    """How sure it is that a number of 7 to 17 digits is a phone's; 0 says that it is none."""
    number = _EXTENSION.sub("", written)
    groups = re.findall("[0-9]+", number)
    digits = "".join(groups)
    if not 7 <= len(digits) <= 15 or len(set(digits)) == 1 or number.count("(") != number.count(")"):
        return 0
    if number.startswith("+") or (digits.startswith("00") and len(digits) > 10):
        return _international(digits, len(groups), named or about)
    if _DATE.match(number) or len(groups) > len(digits) / 2 + 1 or ("." in number and len(groups) < 3):
        return 0
    if _NORTH_AMERICAN.fullmatch(number):
        is_marked = bool(re.search(r"[\-(.]", number))
        return LIKELY if is_marked or named or about or _is_valid(digits, "US") else 0
    if named or (about and (len(groups) > 1 or digits.startswith("0") or len(digits) == 10)):
        return LIKELY if "/" not in number or digits.startswith("0") else 0
    return POSSIBLE if _is_national(number, groups) else 0


def _international(digits: str, groups: int, is_told: bool) -> int:
    import phonenumbers

    try:
        number = phonenumbers.parse("+" + digits.removeprefix("00"), None)
    except phonenumbers.NumberParseException:
        return LIKELY if is_told else 0
    if phonenumbers.is_valid_number(number):
        return PROVEN
    return LIKELY if is_told or (groups > 2 and phonenumbers.is_possible_number(number)) else 0


def _is_valid(digits: str, region: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(digits, region))
    except phonenumbers.NumberParseException:
        return False


def _is_national(number: str, groups: list[str]) -> bool:
    """Whether a number with its trunk prefix is grouped as some region groups its own."""
    length = sum(map(len, groups))
    if groups[0][0] != "0" or length < 9 or len(groups) < (4 if "." in number else 2) or len(groups[0]) < 2:
        return False
    import phonenumbers

    return any(
        any(
            found.start == 0 and found.end == len(number)
            for found in phonenumbers.PhoneNumberMatcher(number, region, leniency=phonenumbers.Leniency.STRICT_GROUPING)
        )
        for region in _REGIONS
    )
