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
    "straße|strasse|str\\.|gasse|allee|platz|ring|weg|gatan|vägen|gata|vej|gade|veien|gaten|vegen|katu|tie|kuja|laan|"
    "straat|plein|gracht"
)
_SEPARATE = (
    "Rua|Rue|Via|Viale|Piazza|Calle|Avenida|Plaza|Paseo|Carrer|Boulevard|Avenue de|ul\\.|al\\.|Aleja|Corso|Largo"
)
_ROOM = r"(?:,?\s{1,3}(?:Apt|Suite|Apartment|Unit|Flat|Room)\.? [0-9]{1,4}[A-Za-z]?)"
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
_NOBODY |= {"The", "A", "An", "This", "That", "To", "Whom", "And", "I", "My", "Lord", "God", "Diary", "Santa"}
_PARTICLES = {"de", "da", "do", "dos", "del", "della", "di", "van", "von", "der", "den", "la", "le", "al", "bin", "y"}


@functools.cache
def _places() -> list[re.Pattern[str]]:
    return [
        re.compile(
            rf"(?<![\w.,\-])[0-9]{{1,5}}[A-Za-z]? (?:[0-9]{{1,4}} )?(?:{_CAPITAL} ){{1,4}}(?:{_STREET})\b\.?"
            rf"{_ROOM}?(?:,?\s{{1,3}}{_CAPITAL}){{0,3}}(?:,?\s{{1,3}}[A-Z]{{2}})?(?:,?\s{{1,3}}[0-9]{{5}}(?:-[0-9]{{4}})?)?"
        ),
        re.compile(rf"(?<!\w)[^\W\d_][\w\-]{{2,30}}(?:{_COMPOUND}) [0-9]{{1,4}}[a-z]?(?!\w){_ROOM}?"),
        re.compile(
            rf"(?<!\w)(?:[0-9]{{1,4}},? )?(?:{_SEPARATE}) (?:[\w'\u2019.\-]{{1,30}} ){{0,4}}?"
            r"[\w'\u2019.\-]{1,30},? [0-9]{1,5}(?!\w)"
        ),
        re.compile(r"(?<!\w)(?:P\.? ?O\.?|Post Office) Box [0-9]{1,6}(?!\w)"),
        re.compile(r"(?<!\w)(?:PSC|Unit|CMR) [0-9]{2,5},? Box [0-9]{2,5}(?:\s[AFD]PO A[AEP] [0-9]{5})?"),
        re.compile(rf"(?<!\w)USN[SV] {_CAPITAL}\s[AFD]PO A[AEP] [0-9]{{5}}"),
        re.compile(r"(?<!\w)(?:Apt|Suite|Apartment)\.? [0-9]{1,4}(?!\w)"),
    ]


@functools.cache
def _leads() -> re.Pattern[str]:
    """What stands before a name."""
    return re.compile(
        r"(?<!\w)(?P<lead>(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Herr|Frau|Monsieur|Madame|Señora?|Signora?|Sra?)\.? "
        r"|(?i:(?:my|his|her|their) (?:full |first |last )?name is |name['\u2019]s |(?:full )?name: ?)"
        r"|(?:Yours truly|Sincerely|Best regards|Kind regards|Regards|Cheers),?\n+|Dear (?:(?:Mr|Mrs|Ms|Dr)\.? )?"
        r"|(?:[Ss]igned|[Cc]ontact|[Aa]ttn)[:,]? )(?P<name>[\w'\u2019.\-]{2,30}(?: [\w'\u2019.\-]{1,30}){0,3})"
    )


def addresses(text: str) -> Iterator[Span]:
    """Streets with a number, post boxes, flats; the town after them where it is written as in the United States."""
    for pattern in _places():
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
