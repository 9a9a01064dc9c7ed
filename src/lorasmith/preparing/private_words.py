"""Guess at street addresses and people's names: by the words that usually stand in or before one, without a model."""

import functools
import re
from collections.abc import Iterator

from lorasmith.preparing.private_context import POSSIBLE, Span

_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w'\u2019.\-]{0,30}"
_STREET = (
    "Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Squares|Streets|Terrace|Way|"
    "Highway|Hwy|Parkway|Pkwy|Circle|Cir|Trail|Close|Crescent|Row|Mews|Gardens|Grove|Alley|Turnpike|Pike"
)
_COMPOUND = (
    "straße|strasse|str\\.|gasse|allee|platz|weg|gatan|vägen|gata|vej|gade|veien|gaten|vegen|katu|tie|kuja|laan|"
    "straat|plein|gracht"
)
_SEPARATE = (
    "Rua|Rue|Via|Viale|Piazza|Calle|Avenida|Plaza|Paseo|Carrer|Boulevard|Avenue de|ul\\.|al\\.|Aleja|Corso|Largo"
)
_ROOMS = "Apt|Suite|Apartment|Unit|Flat|Room"
_ROOM = rf"(?:(?:{_ROOMS})\.? [0-9]{{1,4}}[A-Za-z]?(?!\w))"
_CODE = r"(?:[A-Z]{1,2}-?)?[0-9]{4,5}(?:-[0-9]{3,4})?(?!\w)"
# What comes after a street: flats, then towns and countries if a postcode ends them.
_TAIL = (
    rf"(?:,?\s{{1,3}}{_ROOM}){{0,2}}"
    rf"(?:(?:,?\s{{1,3}}|\s,\s){_CAPITAL}(?: {_CAPITAL}){{0,3}}){{0,4}}(?:,?\s{{1,3}}|\s,\s){_CODE}"
)
_TAIL = rf"(?:{_TAIL}|(?:,?\s{{1,3}}{_ROOM}){{0,2}})"
_HOUSE = r"(?:(?<![\w.,\-])[0-9]{1,5}[A-Za-z]? ){0,2}"
_NOBODY = {
    "Sir",
    "Madam",
    "Customer",
    "Team",
    "All",
    "Friend",
    "Friends",
    "Reader",
    "Hiring",
    "Colleague",
    "Colleagues",
}
_NOBODY |= {"The", "A", "An", "This", "That", "To", "Whom", "And", "I", "My", "Us", "For", "Information", "Visitor"}
_NOBODY |= {"Lord", "God", "Diary", "Santa"}
_PARTICLES = {"de", "da", "do", "dos", "del", "della", "di", "van", "von", "der", "den", "la", "le", "al", "bin", "y"}


@functools.cache
def _places() -> list[tuple[list[str], re.Pattern[str]]]:
    """Shapes of addresses, each with words of which a text must hold one for the shape to be looked for."""
    shapes = {
        _STREET: rf"(?<![\w.,\-])[0-9]{{1,5}}[A-Za-z]? (?:[0-9]{{1,4}} )?(?:{_CAPITAL} ){{1,4}}(?:{_STREET})\b\.?"
        rf"(?:,? {_CAPITAL}(?: {_CAPITAL})?, [A-Z]{{2}}(?: [0-9]{{5}})?(?!\w)|{_TAIL})",
        _COMPOUND: rf"{_HOUSE}(?<!\w)[^\W\d_a-zß-öø-ÿ][\w\-]{{2,30}}(?:{_COMPOUND}) [0-9]{{1,4}}[a-z]?(?!\w){_TAIL}",
        _SEPARATE: rf"{_HOUSE}(?<!\w)(?:{_SEPARATE}) (?:[\w'\u2019.\-]{{1,30}} ){{0,4}}?"
        rf"[\w'\u2019.\-]{{1,30}},? [0-9]{{1,5}}(?!\w){_TAIL}",
        _ROOMS: rf"(?:(?<![\w.,\-])[0-9]{{1,5}} (?:{_CAPITAL} ){{1,4}}(?:[0-9]{{1,4}}\.?)?,?\s{{0,3}}(?<=\s))?"
        rf"(?<!\w){_ROOM}{_TAIL}",
        "Box": rf"{_HOUSE}(?<!\w)(?:P\.? ?O\.?|Post Office) Box [0-9]{{1,6}}(?!\w){_TAIL}",
        "PSC|Unit|CMR": r"(?<!\w)(?:PSC|Unit|CMR) [0-9]{2,5},? Box [0-9]{2,5}(?:\s[AFD]PO A[AEP] [0-9]{5})?",
        "USN": rf"(?<!\w)USN[SV] {_CAPITAL}\s[AFD]PO A[AEP] [0-9]{{5}}",
    }
    return [(words.replace("\\", "").split("|"), re.compile(shape)) for words, shape in shapes.items()]


@functools.cache
def _leads() -> re.Pattern[str]:
    """What stands before a name."""
    return re.compile(
        r"(?<![\w&])(?P<lead>(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Herr|Frau|Monsieur|Madame|Señora?|Signora?|Sra?)\.? "
        r"|(?i:(?:my|his|her|their) (?:full |first |last )?name is |name['\u2019]s |(?:full )?name:\s{1,8})"
        r"|(?i:(?:calls?|called) me |maiden name is |(?:what is|what['\u2019]s) your (?:last |first |full )?name\? )"
        r"|(?:Yours truly|Sincerely|Best regards|Kind regards|Regards|Cheers),?\n+|Dear (?:(?:Mr|Mrs|Ms|Dr)\.? )?"
        r"|(?:[Ss]igned by|[Cc]ontact|[Aa]ttn:?) )(?P<name>[\w'\u2019.\-]{2,30}(?: [\w'\u2019.\-]{1,30}){0,3})"
    )


def addresses(text: str) -> Iterator[Span]:
    """Streets with a number, post boxes, flats; the town after them where it is written as in the United States."""
    for words, pattern in _places():
        if any(word in text for word in words):
            yield from ((match.start(), match.end(), POSSIBLE) for match in pattern.finditer(text))


def names(text: str) -> Iterator[Span]:
    """Capitalised words after a title, a greeting or words such as "my name is"."""
    for match in _leads().finditer(text):
        words = match.group("name").split(" ")
        if not words[0][:1].isupper() or words[0].rstrip(".,'") in _NOBODY:
            continue
        kept = 1
        while kept < len(words) and (words[kept][:1].isupper() or words[kept] in _PARTICLES):
            kept += 1
            if words[kept - 2].endswith(".") and len(words[kept - 2]) > 3:  # the end of a sentence
                kept -= 1
                break
        while words[kept - 1] in _PARTICLES:
            kept -= 1
        name = " ".join(words[:kept])
        yield match.start("name"), match.start("name") + len(re.sub(r"['\u2019]s$|[.'\u2019\-]+$", "", name)), POSSIBLE
