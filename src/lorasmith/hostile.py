"""Limits for what comes with somebody else's model: its chat template is a program."""

import contextlib
import os
import select
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasmith.errors import ModelError

SECONDS = 2.0  # of processor time for all probes together; real templates take milliseconds
MEGABYTES = 64  # of memory beyond what the process has
PATIENCE = 20.0  # seconds by the clock, for a machine that is busy
TURNS = 40  # of the longest probe

_ASKED = [{"role": "user", "content": "What is 2 + 2?"}]
_ANSWERED = [*_ASKED, {"role": "assistant", "content": "4"}]
PROBES = (_ASKED, _ANSWERED, [{"role": "system", "content": "Be brief."}, *_ASKED], _ANSWERED * (TURNS // 2))


def check_template(tokenizer: Any, where: str) -> None:
    """Render short conversations in a process of limited time and memory, before any is rendered in this one.

    Jinja's sandbox keeps a template from files and from Python's insides, and lets it loop and allocate at will
    (guidance#1475). A template that refuses a conversation is no concern of this check.

    Args:
        tokenizer: With transformers' apply_chat_template.
        where: The model, for the message.

    Raises:
        ModelError: If the template passes the limits.
    """
    if not tokenizer.chat_template or not hasattr(os, "fork"):
        return

    def render() -> None:
        for messages in PROBES:
            try:
                tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            except MemoryError:
                raise
            except Exception:  # refused: told where rows are rendered
                continue

    with contextlib.suppress(Exception):  # what it imports at its first call is not the template's doing
        tokenizer.apply_chat_template([], tokenize=False, chat_template="x")
    passed = limited(render)
    if passed:
        raise ModelError(
            f"{where}: its chat template takes more than {passed} for a short conversation; it may be hostile. "
            "Set model.chat_template to one that you trust, such as chatml."
        )


def limited(function: Callable[[], object]) -> str:
    """Call a function in a forked process; the limit that it passed, or nothing."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads; the child runs Python alone and exits
        child = os.fork()
    if not child:
        try:
            _limit()
            function()
            os.write(writer, b"done")
        except MemoryError:
            os.write(writer, b"memory")
        finally:
            os._exit(0)
    os.close(writer)
    end = time.monotonic() + PATIENCE
    said = b""
    while time.monotonic() < end:
        if select.select([reader], [], [], 0.5)[0]:
            said = os.read(reader, 16)
            break
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if said == b"done":
        return ""
    return f"{MEGABYTES} MB" if said == b"memory" else f"{SECONDS:g} s"


def _limit() -> None:
    import resource

    # A fork's processor time begins at nothing; the limit is in whole seconds.
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS) + 1))
    size = Path("/proc/self/statm")
    if size.exists():  # elsewhere than on Linux, time alone is limited
        held = int(size.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEGABYTES * 1_000_000, resource.RLIM_INFINITY))
