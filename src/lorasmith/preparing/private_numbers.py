"""Find bank and card numbers and IP addresses in a text, by their checksums or the words around them."""

import functools
import ipaddress
import re
from collections.abc import Iterator

from lorasmith.preparing.private_checksums import luhn, mod97
from lorasmith.preparing.private_context import LIKELY, POSSIBLE, PROVEN, WRITTEN_OUT, Span, before

# Characters of an IBAN by country: the IBAN registry of SWIFT (ISO 13616).
_LENGTHS = (
    "15:NO 16:BE 18:DK,FI,FK,FO,GL,NL,SD 19:MK,SI 20:AT,BA,EE,KZ,LT,LU,MN,XK 21:CH,HR,LI,LV "
    "22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST "
    "26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA "
    "30:JO,KW,MU,YE 31:MT,SC 32:LC 33:RU"
)
# What must not stand before a number is asked after its first sign: looking for that sign is what costs least.
_IBAN = re.compile(
    rf"[A-Z](?<![A-Z0-9]{WRITTEN_OUT}.)[A-Z]"
    r"[0-9]{2}(?:[ \-\u00a0]?[A-Z0-9]){11,30}",
    re.IGNORECASE | re.ASCII,
)
_CARD = re.compile(
    rf"[0-9](?<![\w.,/+\-]{WRITTEN_OUT}.)"
    r"(?:[0-9]{11,18}|[0-9]{3}([ \-\u00a0])"
    r"(?:[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{3})?|[0-9]{6}\1[0-9]{4,5}))(?![\w\-]|[.,/][0-9])"
)
_QUAD = re.compile(
    rf"[0-9](?<![\w.\-]{WRITTEN_OUT}.)"
    r"(?<![A-Za-z]/.)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![\w\-]|\.[0-9])"
)
_TWO_COLONS = re.compile(":[0-9A-Fa-f]{0,4}:")
_COLONS = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]{0,4})(?![\w:]|\.[0-9])"
)


@functools.cache
def _words(kind: str) -> re.Pattern[str]:
    return re.compile(
        {
            "iban": r"\biban\b|\baccount|\btransfer|\bbank|\bkonto|\bcompte|\bcuenta",
            "card": r"card|\bcc\b|\bvisa\b|\bamex\b|\bmaestro\b|\bcarte\b|\btarjeta|\bkarte\b|\bcarta\b|\bcart[aã]o\b",
            "version": r"(?:\bv|\bver|\bversions?|\brelease|\bbuild|\bfirmware|\bsection|\bchapter|§|\boid)\W{0,3}$",
            "ip": r"\bips?\b|ip[_ ]?addr|\baddress|\bhost|\bserver|\bping\b|\bdns\b|\bsubnet|\bgateway|\bnode\b",
        }[kind],
        re.IGNORECASE,
    )


@functools.cache
def _lengths() -> dict[str, int]:
    entries = (entry.split(":") for entry in _LENGTHS.split(" "))
    return {country: int(length) for length, countries in entries for country in countries.split(",")}


def ibans(text: str) -> Iterator[Span]:
    """Account numbers of a country's length; those with a wrong checksum only where the words say what they are."""
    for match in _IBAN.finditer(text):
        length = _lengths().get(match.group()[:2].upper())
        code, end = "", match.start()
        while length and len(code) < length and end < match.end():
            code += text[end] if text[end].isalnum() else ""
            end += 1
        if len(code) != length or text[end : end + 1].isalnum():
            continue
        if mod97(code.upper()):
            yield match.start(), end, PROVEN
        elif sum(sign.isdigit() for sign in code) > length / 2 and _words("iban").search(before(text, match.start())):
            yield match.start(), end, LIKELY


def _issued(digits: str) -> bool:
    """Whether a number begins and is as long as cards are (ISO/IEC 7812)."""
    first, two, four, length = digits[0], int(digits[:2]), int(digits[:4]), len(digits)
    return (
        (first == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or ((two in (36, 38, 39) or 3000 <= four <= 3059) and 14 <= length <= 19)
        or ((two in (35, 62, 64, 65, 81) or four == 6011) and 16 <= length <= 19)
        or (four in (1800, 2131) and length == 15)
    )


def cards(text: str) -> Iterator[Span]:
    """Card numbers: an issuer's with their check digit, any of 12 to 19 digits after a word such as card."""
    for match in _CARD.finditer(text):
        digits = re.sub("[^0-9]", "", match.group())
        if not 12 <= len(digits) <= 19 or len(set(digits)) == 1:
            continue
        said = _words("card").search(before(text, match.start()))
        if luhn(digits) and (said or _issued(digits)):
            yield match.start(), match.end(), PROVEN
        elif said:
            yield match.start(), match.end(), LIKELY


def _is_someones(found: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Not this machine itself, nobody, everybody, or a mask."""
    if found.version == 4 and str(found).startswith(("0.", "255.")):
        return False
    return not (found.is_loopback or found.is_unspecified or found.is_multicast)


def ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses but for loopback, unspecified, multicast and masks; not the numbers of versions.

    Four short numbers, such as 1.2.3.4 or 3.11.4.1, are more often a section or a version: they need a word such as
    address.
    """
    if text.count(".") >= 3:
        for match in _QUAD.finditer(text):
            window = before(text, match.start())
            if _words("version").search(window) or not _read(match.group()):
                continue
            is_short = match.group()[1] == "." and len(match.group()) < 10
            if not is_short or _words("ip").search(window):
                yield match.start(), match.end(), PROVEN
    if _TWO_COLONS.search(text):
        for match in _COLONS.finditer(text):
            groups = [group for group in match.group().split(":") if group]
            if len(groups) >= 3 and re.search("[0-9]", match.group()) and _read(match.group()):
                yield match.start(), match.end(), PROVEN if len(groups) > 3 else POSSIBLE


def _read(written: str) -> bool:
    try:
        return _is_someones(ipaddress.ip_address(written))
    except ValueError:
        return False
