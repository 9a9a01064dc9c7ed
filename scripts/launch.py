"""Start a script with accelerate, pass signals on to it, and give its own exit code.

    python scripts/launch.py [accelerate's options] scripts/sft.py RECIPE ...

`accelerate launch` turns every failure into 1, and leaves its processes behind when it is asked to stop.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def main() -> None:
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        code_file, (reading, writing) = Path(folder) / "code", os.pipe()
        # Slurm signals every process of a job: accelerate, which does not know this one, would die of it.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        process = subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *words],
            env={**os.environ, "LORASMITH_EXIT": str(code_file)},
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)

        def forward(number: int, frame: Any) -> None:
            """To the script's processes alone: accelerate itself would leave at once and take them along."""
            for child in workers(process.pid, words):
                child.send_signal(number)

        for one in SIGNALS:
            signal.signal(one, forward)
        status = process.wait()
        while os.read(reading, 1):  # the pipe ends when the last process that inherited it does
            pass
        ended = sorted(Path(folder).glob("code.*"), key=lambda path: path.stat().st_mtime_ns)
        wrong = [code for path in ended if (code := int(path.read_text()))]
    sys.exit(wrong[0] if wrong else (1 if status else 0))  # the first rank to end has the cause


def workers(launcher: int, words: list[str]) -> list[psutil.Process]:
    """The processes below accelerate that run the script."""
    script = next((word for word in words if word.endswith(".py")), "")
    try:
        below = psutil.Process(launcher).children(recursive=True)
        return [one for one in below if script in one.cmdline()]
    except psutil.NoSuchProcess:
        return []


if __name__ == "__main__":
    main()
