"""Answers that are right or wrong: the same text, or the same number as GSM8K writes it.

rewards: [rewards/match.py:numeric]
"""

import re
from decimal import Decimal

from lorasmith.rewards.texts import tagged, text_of

MINUS = "\u2212"
NUMBER = re.compile(rf"(?<![0-9])[-{MINUS}]?[$€£]?[-{MINUS}]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")


def exact(completions, answer, tag="", **columns):
    """1 where the completion, or with `tag` what is in its last <tag>, is the row's `answer` but for space around."""
    found = []
    for completion, wanted in zip(completions, answer, strict=True):
        text = text_of(completion)
        if tag:
            text = tagged(text, tag)[-1] if tagged(text, tag) else ""
        found.append(None if wanted is None else float(text.strip() == str(wanted).strip()))
    return found


def numeric(completions, answer, marked=True, **columns):
    """1 where the number behind `####` is that of the row's `answer`; with `marked: false`, else the last number.

    Commas, a currency's sign and units around a number do not count: `#### $1,200 a month` is 1200.
    """
    found = []
    for completion, wanted in zip(completions, answer, strict=True):
        right = number_in(str(wanted), marked=False)
        given = number_in(text_of(completion), marked)
        found.append(None if wanted is None or right is None else float(given == right))
    return found


def number_in(text, marked):
    """The number behind the first `####`, or, if it need not be marked, the last one of a text without; else None."""
    _, mark, behind = text.partition("####")
    if not mark:
        numbers = [] if marked else NUMBER.findall(text)[-1:]
    else:  # on the same line, as GSM8K's own reading has it: what a model goes on with is no answer
        numbers = NUMBER.findall(behind.partition("\n")[0])[:1]
    return value_of(numbers[0]) if numbers else None


def value_of(number):
    """A number as written, without its currency and commas."""
    return Decimal(re.sub("[$€£,]", "", number).replace(MINUS, "-").replace("--", "-"))
