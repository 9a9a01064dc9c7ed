"""Programs that pass their unit tests, each run in a sandbox (docs/rewards.md says what it keeps out).

rewards: [rewards/code.py:passes_tests]
"""

from lorasmith.rewards.sandbox import Limits, run_all
from lorasmith.rewards.texts import fenced, text_of


def passes_tests(completions, tests, entry_point=None, seconds=5.0, memory_mib=512, unprotected=False, **columns):
    """1 where the completion's last fenced block, or the whole of it, passes the row's tests; nothing without tests.

    `tests` is a column with Python text or a list of such. With HumanEval's `entry_point`, its check() is called.
    """
    wanted = [text_of_tests(one, name) for one, name in zip(tests, entry_point or [None] * len(tests), strict=True)]
    programs = [
        (fenced(text_of(completion)), test) for completion, test in zip(completions, wanted, strict=True) if test
    ]
    outcomes = iter(run_all(programs, Limits(seconds=seconds, memory_mib=memory_mib, unprotected=unprotected)))
    return [float(next(outcomes).passed) if test else None for test in wanted]


def text_of_tests(tests, entry_point):
    """The tests of one row as one text."""
    text = tests if isinstance(tests, str) else "\n".join(tests or [])
    return f"{text}\ncheck({entry_point})" if entry_point and text.strip() else text.strip()
