"""Check digits of card, bank and national numbers. Each takes digits without separators and says whether they hold."""

from datetime import date

# Dihedral group of order 5, for Verhoeff's scheme (https://en.wikipedia.org/wiki/Verhoeff_algorithm).
_TIMES = [
    "0123456789",
    "1234067895",
    "2340178956",
    "3401289567",
    "4012395678",
    "5987604321",
    "6598710432",
    "7659821043",
    "8765932104",
    "9876543210",
]
_TURNS = [
    "0123456789",
    "1576283094",
    "5803796142",
    "8916043527",
    "9453126870",
    "4286573901",
    "2793806415",
    "7046913258",
]


def luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def mod97(iban: str) -> bool:
    """ISO 7064 mod 97-10 of an IBAN in capitals without spaces."""
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97 == 1


def mod11_10(digits: str) -> bool:
    """ISO 7064 mod 11, 10, as of the German tax id."""
    product = 10
    for digit in digits[:-1]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[-1])


def verhoeff(digits: str) -> bool:
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = int(_TIMES[check][int(_TURNS[place % 8][int(digit)])])
    return check == 0


def weighted(digits: str, weights: tuple[int, ...]) -> int:
    """The sum of the digits times their weights; as many digits as there are weights."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


def is_date(year: str, month: str, day: str) -> bool:
    """Whether two-digit or four-digit texts are a day; two digits of a year stand for any century."""
    years = [int(year)] if len(year) == 4 else [1900 + int(year), 2000 + int(year)]
    for number in years:
        try:
            date(number, int(month), int(day))
        except ValueError:
            continue
        return True
    return False


def cpf(digits: str) -> bool:
    """Both check digits of a Brazilian CPF; eleven equal digits hold them too, and are refused."""
    if len(set(digits)) == 1:
        return False
    for length in (9, 10):
        rest = weighted(digits, tuple(range(length + 1, 1, -1))) * 10 % 11 % 10
        if rest != int(digits[length]):
            return False
    return True


_ODD_DIGITS = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21)
_ODD_LETTERS = (*_ODD_DIGITS, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def codice_fiscale(code: str) -> bool:
    """The last letter of an Italian tax code, 16 capitals and digits."""
    total = 0
    for place, sign in enumerate(code[:15]):
        value = int(sign) if sign.isdigit() else ord(sign) - 65
        total += value if place % 2 else (_ODD_DIGITS if sign.isdigit() else _ODD_LETTERS)[value]
    return chr(65 + total % 26) == code[15]
