"""How a script ends: every way out is one line and an exit code."""

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from lorasmith.console import complain, is_first_process, plain
from lorasmith.data.sharing import abandon
from lorasmith.errors import LorasmithError, StoppedError, StoppedNow
from lorasmith.failures import explain
from lorasmith.leaks import cleaned
from lorasmith.listening import listener

INTERRUPTED = 130  # as a shell reports SIGINT
STOPPED = 75  # on request; the same command goes on
FIRST_TELLS = 5.0  # seconds that the first of several processes has to fail in the same way


def run_script(main: Callable[[], None]) -> None:
    """Call a script's main and leave the process with the project's exit codes.

    A LorasmithError and a failure of the table are told in one line; anything else is our bug, with its traceback.
    """
    try:
        main()
    except LorasmithError as error:
        _leave(error, str(error) if error.exit_code == STOPPED else f"error: {error}", error.exit_code)
    except StoppedNow as stop:
        _leave(None, str(stop), STOPPED)
    except KeyboardInterrupt:
        _leave(None, "stopped: interrupted from the keyboard.", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        failure = explain(error)
        if failure is not None:
            details = f" (details: {_current_run}/private/log.txt)" if _current_run is not None else ""
            line = f"error: {failure.cause}. {failure.mend}{details}"
            _leave(error, line, failure.exit_code)
        print(cleaned(traceback.format_exc()), file=sys.stderr)
        _leave(error, "error: this is a bug in Lorasmith; please report the lines above.", 1)


def _leave(error: BaseException | None, line: str, code: int) -> None:
    line = cleaned(line)
    complain(line)
    if _current_run is not None and error is not None:
        trace = "".join(traceback.format_exception(error))
        # The disk may be what is full.
        with contextlib.suppress(OSError), (_current_run / "private" / "log.txt").open("a", encoding="utf-8") as log:
            log.write(cleaned(trace))
    record_end(line, code)
    abandon(code)
    if not is_first_process() and code not in (STOPPED, INTERRUPTED):
        _let_the_first_tell(line, code)
    sys.exit(code)


def _let_the_first_tell(line: str, code: int) -> None:
    """Wait until the launcher ends this process, as it does when another failed; tell the line if none did.

    A launcher ends all processes once one has failed: the first must have said why by then.
    """
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: os._exit(code))
    time.sleep(FIRST_TELLS)
    print(f"rank {os.environ['RANK']}: {plain(line)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def resumable(kept: str) -> Iterator[None]:
    """Inside, a signal that asks to stop ends the script with exit code 75 and says what stays.

    Raises:
        StoppedError: On a signal.
    """
    try:
        yield
    except StoppedNow:
        raise StoppedError(f"stopped: {listener.asked}; {kept}. The same command goes on.") from None


def record_end(line: str, code: int) -> None:
    """Write the end of the open run into its folder, and the exit code for `scripts/launch.py`.

    Of several processes that fail, the first one tells; a stop is told by the first process.
    """
    if _current_run is not None and (code != STOPPED or is_first_process()):
        from lorasmith.reliability.checkpoints import checkpoints, step_of
        from lorasmith.runs.folder import read_json, write_status

        step = next((step_of(one) for one in checkpoints(_current_run)), None)
        with contextlib.suppress(OSError):  # as above
            if read_json(_current_run / "status.json", strict=False).get("exit_code") is None:
                write_status(_current_run, code, line, step, "the same command goes on" if step else "")
    path = os.environ.get("LORASMITH_EXIT")
    if path:
        Path(f"{path}.{os.environ.get('RANK', '0')}").write_text(str(code))


_current_run: Path | None = None


def enter_run(folder: Path) -> None:
    """From here on, write warnings to the run's private log and the end of the process to its status.json."""
    global _current_run
    _current_run = folder
    if not is_first_process():
        return
    handler = logging.FileHandler(folder / "private" / "log.txt", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    for name in ("py.warnings", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets"):
        logger = logging.getLogger(name)
        for old in logger.handlers:
            old.close()
        logger.handlers = [handler]
        logger.propagate = False


def quiet(offline: bool = False) -> None:
    """Keep the libraries' progress bars, telemetry and repeated warnings off a script's output.

    Called before they are imported: some speak while being imported.

    Args:
        offline: Whether they must not open a connection either.
    """
    if offline:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.simplefilter("ignore")
    for name in ("bitsandbytes", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
