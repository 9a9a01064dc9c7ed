"""Find keys, tokens, passwords, and links that carry one."""

import functools
import importlib
import math
import re
from collections import Counter
from collections.abc import Iterator

from lorasmith.leaks import SHAPES
from lorasmith.preparing.private_context import LIKELY, POSSIBLE, PROVEN, Span

SHORTEST_TOKEN = 24  # characters of what the plugins of detect-secrets know
LONGEST_LINE = 4096  # characters given to a pattern of detect-secrets at once: some of them are quadratic
LONGEST_KEY = 16_384  # characters of a private key between its BEGIN and END
REACH = 320  # characters from a word such as password to the end of what it names
_URL = re.compile(r"(?<![A-Za-z0-9+.\-])[A-Za-z][A-Za-z0-9+.\-]{1,20}://[^\s\"'<>`|\\^\[\]{}]{3,2048}")
_WITH_PASSWORD = re.compile(r"[A-Za-z0-9+.\-]+://[^\s/@:?#]{0,256}:[^\s/@]{1,256}@")
_WITH_TOKEN = re.compile(
    r"[?&#;](?:[\w\-]{0,30}(?:token|secret|signature|password|passwd|api_?key|access_?key|credential)|key|sig|pwd|auth|"
    r"session(?:_?id)?|sid|jwt|code)=[^&\s#]{8}",
    re.IGNORECASE,
)
_JWT = re.compile(r"(?<![\w\-])eyJ[\w\-]{8,4096}\.[\w\-]{8,4096}(?:\.[\w\-]{0,2048})?")
_REST = re.compile(r"[\w\-]{0,256}")
_KEY_END = re.compile(r"-----END[A-Z0-9 ]{0,60}-{0,5}")
_KEY_BODY = re.compile(r"(?:[\s\\nr]{0,4}[A-Za-z0-9+/=]{16,}){0,256}")
_NEEDLES = ("hf_", "sk-", "gh", "AKIA", "xox", "AIza", "glpat-", "-----BEGIN")  # how leaks.SHAPES begin
# Modules and classes of detect_secrets.plugins, and what a line must hold for one to be asked.
_PLUGINS = (
    ("aws", "AWSKeyDetector", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws", "AWS")),
    ("azure_storage_key", "AzureStorageKeyDetector", ("AccountKey=",)),
    ("cloudant", "CloudantDetector", ("cloudant", "CLOUDANT")),
    ("discord", "DiscordBotTokenDetector", (".",)),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("gl", "GR1348941")),
    ("ibm_cos_hmac", "IbmCosHmacDetector", ("cos", "COS")),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("npm", "NpmDetector", (":_authToken=",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-Ag",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "hooks.slack.com")),
    ("softlayer", "SoftlayerDetector", ("softlayer", "SOFTLAYER")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp-",)),
    ("stripe", "StripeDetector", ("k_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", (":AA",)),
    ("twilio", "TwilioKeyDetector", ("AC", "SK")),
)
_TOLD = ("key", "token", "secret", "passw", "passphrase", "pwd", "bearer", "credential")


@functools.cache
def _assigned() -> re.Pattern[str]:
    """A word for a secret, then how it is given, then the value."""
    return re.compile(
        r"(?:(?P<soft>passwords?|passwd|passphrase|passwort|pwd)"
        r"|(?:api|access|auth|private)[ _\-]?key|secret|token|credential|bearer|(?<![A-Za-z])key)"
        r"[\w\-]{0,24}(?P<given>[\"']? {0,3}(?::=|=>|[:=]) {0,3}| is:? |[\"']? {1,3})[\"'`]?"
        r"(?P<value>[^\s\"'`,;<>()\[\]{}|\\]{6,256})(?![(\[{])",
        re.IGNORECASE,
    )


def urls(text: str) -> Iterator[Span]:
    """Links with a user's password before the host, or with a token among their parameters."""
    for match in _URL.finditer(text):
        if _WITH_PASSWORD.match(match.group()) or _WITH_TOKEN.search(match.group()):
            yield *_without_full_stop(match), PROVEN


def links(text: str) -> Iterator[Span]:
    """Any link."""
    for match in _URL.finditer(text):
        yield *_without_full_stop(match), POSSIBLE


def _without_full_stop(match: re.Match[str]) -> tuple[int, int]:
    return match.start(), match.start() + len(match.group().rstrip(".,;:!?)*"))


def secrets(text: str) -> Iterator[Span]:
    """Private keys, tokens of known services, and random values that the words before them call a secret."""
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "eyJ" in text:
        yield from ((match.start(), match.end(), PROVEN) for match in _JWT.finditer(text))
    if any(needle in text for needle in _NEEDLES):
        for match in SHAPES.finditer(text):
            if not match.group().startswith("-----"):
                yield match.start(), _REST.match(text, match.end()).end(), PROVEN  # type: ignore[union-attr]
    if max(map(len, text.split()), default=0) >= SHORTEST_TOKEN:
        yield from _of_services(text)
    yield from _told(text)


def _private_keys(text: str) -> Iterator[Span]:
    done = 0
    for match in re.finditer(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", text):
        if match.start() < done:
            continue
        end = text.find("-----END", match.end(), match.end() + LONGEST_KEY)
        pattern = _KEY_END if end >= 0 else _KEY_BODY
        found = pattern.match(text, max(end, match.end()))
        done = found.end() if found else match.end()
        yield match.start(), done, PROVEN


def _of_services(text: str) -> Iterator[Span]:
    """What the plugins of detect-secrets know; their patterns are used as they are, to learn where a value stands."""
    for module, name, needles in _PLUGINS:
        if not any(needle in text for needle in needles):
            continue
        patterns = _denylist(module, name)
        for start, line in _lines(text):
            if any(needle in line for needle in needles):
                for match in (found for pattern in patterns for found in pattern.finditer(line)):
                    group = match.lastindex if match.lastindex and match.group(match.lastindex) else 0
                    group = group if len(match.group(group)) >= 20 else 0
                    if re.search("[0-9]", match.group(group)):
                        yield start + match.start(group), start + match.end(group), PROVEN


@functools.cache
def _denylist(module: str, name: str) -> list[re.Pattern[str]]:
    plugin = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)
    return list(plugin.denylist)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a text with where they start; longer ones in pieces of LONGEST_LINE characters."""
    start = 0
    for line in text.splitlines(keepends=True):
        for piece in range(0, len(line), LONGEST_LINE):
            yield start + piece, line[piece : piece + LONGEST_LINE]
        start += len(line)


def _entropy(value: str) -> float:
    """Shannon's entropy of the characters, in bits."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())


def _told(text: str) -> Iterator[Span]:
    for match in (found for part in _near_words(text) for found in _assigned().finditer(text, *part)):
        value, given = match.group("value").rstrip(".!?:*_"), match.group("given")
        is_given = given.strip("\"' ") != ""
        start = match.start("value")
        if len(value) >= 6 and (_is_password(value) if match.group("soft") and is_given else _is_random(value)):
            yield start, start + len(value), LIKELY


def _near_words(text: str) -> Iterator[tuple[int, int]]:
    """The parts of a text around words for a secret."""
    lower = text.lower()
    if len(lower) != len(text):  # a few capitals, such as the Turkish dotted I, become two characters
        yield 0, len(text)
        return
    start = end = -1
    for place in sorted(place for word in _TOLD for place in _places(lower, word)):
        if place - 8 > end:
            if end >= 0:
                yield start, end
            start = max(0, place - 8)
        end = place + REACH
    if end >= 0:
        yield start, end


def _places(text: str, word: str) -> Iterator[int]:
    place = text.find(word)
    while place >= 0:
        yield place
        place = text.find(word, place + len(word))


def _is_password(value: str) -> bool:
    """Not a plain word, a number, a path, a link, or a piece of a program."""
    has_digit, has_letter = bool(re.search("[0-9]", value)), bool(re.search("[A-Za-z]", value))
    is_program = re.search(r"^[$%@&]|://|^\w+\.\w+$|^/|=|\*\*|xxx|\.\.\.|^[A-Z_]+$|^[a-z]+_[a-z_0-9]+$", value)
    has_sign = bool(re.search(r"[!@#$%^&*?~+]", value[:-1]))
    return has_letter and (has_digit or has_sign) and not is_program


def _is_random(value: str) -> bool:
    """Sixteen or more characters in such disorder as detect-secrets asks of hex (3 bits) and base64 (here 3.5)."""
    if len(value) < 16 or not re.fullmatch(r"[\w+/=.~\-]+", value, re.ASCII) or "://" in value:
        return False
    digits = sum(sign.isdigit() for sign in value)
    is_mixed = len(value) >= 32 and digits == 1 and value.lower() != value  # one digit is enough in a long one
    if (digits < 2 and not is_mixed) or digits == len(value) or re.fullmatch(r"[a-z]+(?:[_\-./][a-z0-9]+)+", value):
        return False
    return _entropy(value) >= (3.0 if re.fullmatch("[0-9a-fA-F]+", value) else 3.5)
