"""What the signals of this process have asked for. Imports nothing heavy, so that it listens from the first moment."""

import os
import signal
import sys
from typing import Any

from lorasmith.errors import StoppedNow

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # set for processes that a launcher starts


class Listener:
    """Takes the signals over and remembers what they asked for."""

    def __init__(self) -> None:
        self.asked = ""
        self.phase = "starting"  # then training, then finishing
        self.launcher = os.getppid() if any(name in os.environ for name in LAUNCHERS) else 0

    def listen(self) -> None:
        """Take the signals over, until the process ends."""
        for one in (*SIGNALS, signal.SIGALRM):
            signal.signal(one, self._heard)
        sys.unraisablehook = self._ask_again

    def _ask_again(self, lost: Any) -> None:
        """A stop that fell into a destructor or a weak reference's callback, where Python drops what is raised."""
        if isinstance(lost.exc_value, StoppedNow):
            signal.setitimer(signal.ITIMER_REAL, 0.01)  # not at once: what is raised in this hook is dropped too
        else:
            sys.__unraisablehook__(lost)

    def _heard(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.asked = self.asked or f"{name} received"
        if self.phase == "starting":
            raise StoppedNow(self.too_early())

    def too_early(self) -> str:
        """What is said of a stop with nothing to save."""
        asked = self.asked or "another process was asked to stop"
        return f"stopped: {asked} before the first step. The same command starts again."

    def reason(self) -> str:
        """Why this process should stop, or nothing."""
        if self.launcher and os.getppid() != self.launcher:
            return "the launcher is gone"
        return self.asked


listener = Listener()
