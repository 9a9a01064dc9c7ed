"""Find numbers that a state gives to a person, by their checksum, their shape, or the words around them."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lorasmith.preparing.private_checksums import codice_fiscale, cpf, is_date, luhn, mod11_10, verhoeff, weighted
from lorasmith.preparing.private_context import LEFT, LIKELY, PROVEN, RIGHT, Span, before, windows

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"
_HETU = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_CAPTURED = "value"


@dataclass(frozen=True, slots=True)
class _Rule:
    """A kind of number: its pattern, what its digits must hold, and the words that must stand before it, if any."""

    pattern: str
    holds: Callable[[str], bool]
    words: str = ""


def _any(code: str) -> bool:
    return True


def _ssn(code: str) -> bool:
    return code[:3] not in ("000", "666") and code[:1] != "9" and code[3:5] != "00" and code[5:] != "0000"


def _nhs(code: str) -> bool:
    return (11 - weighted(code, tuple(range(10, 1, -1))) % 11) % 11 == int(code[9])


def _nir(code: str) -> bool:
    number = code[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(code[13:])


def _bsn(code: str) -> bool:
    return weighted(code, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def _belgian(code: str) -> bool:
    return any(97 - int(century + code[:9]) % 97 == int(code[9:]) for century in ("", "2"))


def _pesel(code: str) -> bool:
    month = int(code[2:4]) % 20
    return weighted(code, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0 and is_date(code[:2], str(month), code[4:6])


def _swedish(code: str) -> bool:
    code = code[-10:]
    return luhn(code) and is_date(code[:2], code[2:4], code[4:6])


def _hetu(code: str) -> bool:
    number = code[:6] + code[-4:-1]
    return _HETU[int(number) % 31] == code[-1] and is_date(code[4:6], code[2:4], code[:2])


def _danish(code: str) -> bool:
    return is_date(code[4:6], code[2:4], code[:2])


def _norwegian(code: str) -> bool:
    first = weighted(code, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    second = weighted(code, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11
    return first == second == 0 and is_date(code[4:6], code[2:4], code[:2])


def _ahv(code: str) -> bool:
    return weighted(code, (1, 3) * 6 + (1,)) % 10 == 0


def _tfn(code: str) -> bool:
    return weighted(code, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0


def _nric(code: str) -> bool:
    rest = (weighted(code[1:8], (2, 7, 6, 5, 4, 3, 2)) + {"T": 4, "G": 4, "M": 3}.get(code[0], 0)) % 11
    letters = {"S": "JZIHGFEDCBA", "T": "JZIHGFEDCBA", "M": "XWUTRQPNJLK"}.get(code[0], "XWUTRQPNMLK")
    return letters[rest] == code[8]


def _chinese(code: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return (
        is_date(code[6:10], code[10:12], code[12:14]) and "10X98765432"[weighted(code[:17], weights) % 11] == code[17]
    )


def _korean(code: str) -> bool:
    return is_date(code[:2], code[2:4], code[4:6])


def _south_african(code: str) -> bool:
    return luhn(code) and is_date(code[:2], code[2:4], code[4:6])


def _turkish(code: str) -> bool:
    digits = [int(digit) for digit in code]
    tenth = (7 * sum(digits[0:9:2]) - sum(digits[1:8:2])) % 10
    return tenth == digits[9] and sum(digits[:10]) % 10 == digits[10]


def _mexican(code: str) -> bool:
    return is_date(code[4:6], code[6:8], code[8:10])


def _has_digits(code: str) -> bool:
    return sum(sign.isdigit() for sign in code) >= 4


_SOCIAL = r"\bssn|social sec|\bitin\b|\btax(?:payer)? id"
_LICENCE = r"driv(?:er|ing|ers)['\u2019]?s?[ \-]licen[cs]e(?: (?:number|no\.?|num|id))?[ :#]{0,3}(?:is)?[ :#]{0,3}"
_PASSPORT = r"passport(?: (?:number|no\.?|num|id))?[ :#]{0,3}(?:is)?[ :#]{0,3}"
_RULES = (
    _Rule(r"[0-9]{3}-[0-9]{2}-[0-9]{4}", _ssn),
    _Rule(r"[0-9]{3}([ .\-]?)[0-9]{2}\1[0-9]{4}", lambda code: _ssn(code) or code[0] == "9", _SOCIAL),
    _Rule(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]", _any),
    _Rule(r"[0-9]{3}([ \-]?)[0-9]{3}\1[0-9]{4}", _nhs, r"\bnhs\b|national health"),
    _Rule(r"[1-9][0-9](?: ?[0-9]{3}){3}", mod11_10, r"steuer|\btax|\bidnr|identifikationsnummer|\btin\b"),
    _Rule(r"[0-9]{8}[ \-]?[A-Z]", lambda code: _DNI[int(code[:8]) % 23] == code[8]),
    _Rule(r"[XYZ][ \-]?[0-9]{7}[ \-]?[A-Z]", lambda c: _DNI[int(str("XYZ".index(c[0])) + c[1:8]) % 23] == c[8]),
    _Rule(r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", codice_fiscale),
    _Rule(r"[12] ?[0-9]{2} ?(?:0[1-9]|1[0-2]|[2-9][0-9]) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", _nir),
    _Rule(r"[0-9]{4}[. ]?[0-9]{2}[. ]?[0-9]{3}", _bsn, r"\bbsn\b|burgerservice|sofi-?nummer"),
    _Rule(r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", _belgian),
    _Rule(r"[0-9]{11}", _pesel, r"\bpesel\b"),
    _Rule(r"(?:19|20)?[0-9]{6}[\-+][0-9]{4}", _swedish),
    _Rule(r"[0-9]{6}[\-+A-FU-Y][0-9]{3}[0-9A-FHJ-NPR-Y]", _hetu),
    _Rule(r"[0-9]{6}-[0-9]{4}", _danish, r"\bcpr\b|personnummer"),
    _Rule(r"[0-9]{6} ?[0-9]{5}", _norwegian),
    _Rule(r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", _ahv),
    _Rule(r"[2-9][0-9]{3}([ \-])[0-9]{4}\1[0-9]{4}", verhoeff),
    _Rule(r"[2-9][0-9]{11}", verhoeff, r"aa?dhaa?r|\buidai?\b"),
    _Rule(r"[A-Z]{3}P[A-Z][0-9]{4}[A-Z]", _any),
    _Rule(r"[A-Z]{5}[0-9]{4}[A-Z]", _any, r"\bpan\b|permanent account"),
    _Rule(r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", cpf),
    _Rule(r"[0-9]{11}", cpf, r"\bcpf\b"),
    _Rule(r"[0-9]{3}([ \-]?)[0-9]{3}\1[0-9]{3}", luhn, r"\bsin\b|social insurance"),
    _Rule(r"[0-9]{3}( ?)[0-9]{3}\1[0-9]{3}", _tfn, r"\btfn\b|tax file"),
    _Rule(r"[STFGM][0-9]{7}[A-Z]", _nric),
    _Rule(r"[0-9]{13}", _south_african, r"\bid\b|identity|\brsa\b"),
    _Rule(r"[0-9]{6}-[1-8][0-9]{6}", _korean),
    _Rule(r"[1-9][0-9]{10}", _turkish, r"\btc\b|\bt\.c\.|kimlik"),
    _Rule(r"[A-Z][AEIOUX][A-Z]{2}[0-9]{6}[HMX][A-Z]{5}[0-9A-Z][0-9]", _mexican),
    _Rule(r"[1-9][0-9]{16}[0-9X]", _chinese),
    _Rule(_LICENCE + rf"(?P<{_CAPTURED}>[A-Z0-9][A-Z0-9\-]{{4,18}})", _has_digits),
    _Rule(_PASSPORT + rf"(?P<{_CAPTURED}>[A-Z]{{0,2}}[0-9]{{6,9}})", _any),
)


@functools.cache
def _compiled() -> list[tuple[re.Pattern[str], _Rule, re.Pattern[str] | None]]:
    return [
        (
            re.compile(LEFT + rule.pattern + RIGHT, re.IGNORECASE | re.ASCII),
            rule,
            re.compile(rule.words, re.IGNORECASE) if rule.words else None,
        )
        for rule in _RULES
    ]


def national_ids(text: str) -> Iterator[Span]:
    """National numbers: those with a checksum or a shape of their own anywhere, others after a word that names them."""
    parts = list(windows(text))
    for pattern, rule, words in _compiled():
        for match in (found for part in parts for found in pattern.finditer(text, *part)):
            group = _CAPTURED if _CAPTURED in pattern.groupindex else 0
            code = re.sub("[^0-9A-Za-z]", "", match.group(group)).upper()
            if len(set(code)) > 1 and rule.holds(code) and (not words or words.search(before(text, match.start()))):
                yield match.start(group), match.end(group), LIKELY if rule.holds is _any else PROVEN
