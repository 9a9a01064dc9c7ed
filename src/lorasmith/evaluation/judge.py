"""A judge behind an OpenAI-compatible address: which of two answers is better, asked in both orders.

A judge prefers what it reads first, or last (arXiv 2306.05685). Each pair is asked twice, and a side wins only by what
both orders say together: 1 where both prefer it, a half where they contradict each other or call it a tie.
"""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from lorasmith.errors import LorasmithError

KEY = "OPENAI_API_KEY"
TIMEOUT = 60.0  # seconds of one question
TRIES = 4
PAUSE = 1.0  # seconds before the second try, doubled each time
AT_ONCE = 4
GIVE_UP = 5  # failures in a row from the first question on
PROMPT = """\
You compare two answers to the same request. Judge which one is more correct and more helpful. Length and style matter
only where they help; the order of the answers means nothing.

[Request]
{question}

[Reference answer, which may be missing]
{reference}

[Answer A]
{first}

[Answer B]
{second}

End with one line that says exactly one of: [[A]], [[B]], [[C]] for a tie."""
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_SCORES = {"A": 1.0, "B": 0.0, "C": 0.5}


class JudgeFailedError(Exception):
    """A question that got no verdict."""


@dataclass(frozen=True, slots=True)
class Question:
    """A pair to judge: what was asked, the expected answer, and the answers of base and other."""

    row: str
    question: str
    reference: str
    base: str
    other: str


@dataclass(frozen=True, slots=True)
class Judge:
    """Who is asked, and how.

    Attributes:
        url: Up to `/chat/completions`, or with it.
        prompt: With {question}, {first} and {second}, and {reference} if it is to see one.
    """

    url: str
    model: str
    prompt: str = PROMPT
    timeout: float = TIMEOUT
    tries: int = TRIES
    pause: float = PAUSE

    def verdicts(self, questions: Sequence[Question]) -> Iterator[tuple[str, float | None, str]]:
        """Ask of each pair, several at once.

        Yields:
            The row; how much of a win it is for the other, 0 to 1, or None where the judge failed; and why it did.

        Raises:
            LorasmithError: If the first questions all fail.
        """
        failed = answered = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            asked = {pool.submit(self._both_orders, one): one for one in questions}
            try:
                for future in as_completed(asked):
                    try:
                        score, why = future.result(), ""
                        answered += 1
                    except JudgeFailedError as error:
                        score, why = None, str(error)
                        failed += 1
                        if not answered and failed >= min(GIVE_UP, len(questions)):
                            raise LorasmithError(
                                f"--judge: {self.url}: {why}. Check the address and the model."
                            ) from None
                    yield asked[future].row, score, why
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _both_orders(self, one: Question) -> float:
        """The other's score, 0 to 1, meant over both orders."""
        first = self._ask(one, one.other, one.base)
        second = self._ask(one, one.base, one.other)
        return (first + 1 - second) / 2

    def _ask(self, one: Question, first: str, second: str) -> float:
        """The score of what stands first."""
        filled = {"question": one.question, "reference": one.reference or "(none)", "first": first, "second": second}
        # One pass, so that braces within an answer stay what they are.
        text = re.sub(r"\{(question|reference|first|second)\}", lambda found: filled[found[1]], self.prompt)
        said = self._complete(text)
        verdicts = _VERDICT.findall(said)
        if not verdicts:
            raise JudgeFailedError("no [[A]], [[B]] or [[C]] in what it said")
        return _SCORES[verdicts[-1]]

    def _complete(self, text: str) -> str:
        """What the model says to one message, tried again where the server is busy or gone."""
        messages = [{"role": "user", "content": text}]
        data = json.dumps({"model": self.model, "messages": messages, "temperature": 0}).encode()
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        url = self.url.rstrip("/")
        url += "" if url.endswith("/chat/completions") else "/chat/completions"
        why = ""
        for number in range(self.tries):
            if number:
                time.sleep(self.pause * 2 ** (number - 1))
            try:
                request = urllib.request.Request(url, data, headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                    return str(json.load(reply)["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {error.reason}"
                if error.code not in (408, 409, 429) and error.code < 500:
                    break
            except (OSError, ValueError, LookupError, TypeError) as error:
                why = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise JudgeFailedError(why)


def check_judge(url: str, model: str | None, prompt: str) -> Judge:
    """A judge as the command line names it.

    Raises:
        LorasmithError: If something is missing, before anything is asked.
    """
    if not re.match(r"https?://", url):
        raise LorasmithError(f"--judge is `{url}`; expected an address that begins with http:// or https://.")
    if not model:
        raise LorasmithError("--judge needs --judge-model: the name of the model behind the address.")
    for name in ("{question}", "{first}", "{second}"):
        if name not in prompt:
            raise LorasmithError(f"--judge-prompt: {name} is missing; it must show the question and both answers.")
    return Judge(url, model, prompt)
