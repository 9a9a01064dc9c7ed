"""One trial of the scorecard: a real run of scripts/sft.py in a process forked behind the imports."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 8
BASIC = [
    "recipes/quickstart.yaml", "data.train=quickstart/data/heldout.jsonl", "data.eval=null", "model.quantization=none",
    "run.effective_batch=4", "run.micro_batch=4", "adapter.rank=4", "adapter.dropout=0.1", f"trainer.max_steps={STEPS}",
    "trainer.save_steps=2", "trainer.logging_steps=1", "trainer.eval_strategy=no", "model.dtype=float32",
]  # fmt: skip


@dataclasses.dataclass
class Ended:
    """How a trial ended."""

    code: int
    text: str
    seconds: float


def load_script() -> Any:
    """scripts/sft.py and everything it imports, in this process, one thread, so that a fork is cheap and safe."""
    os.chdir(ROOT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    from lorasmith.runs.ending import quiet

    quiet()
    import trl.trainer.sft_trainer  # noqa: F401

    from lorasmith import adapters, models  # noqa: F401
    from lorasmith.reliability import reopened  # noqa: F401
    from lorasmith.runs import guarding, planning, report  # noqa: F401

    spec = importlib.util.spec_from_file_location("sft_script", ROOT / "scripts/sft.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(script: Any, words: list[str], hook: Callable[[], None] | None = None, log: Path | None = None) -> int:
    """Fork a run of the script; gives its process id.

    Args:
        hook: Called in the run's process before it begins.
        log: Where what it says is written.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["scripts/sft.py", *words]
        import torch

        torch.set_num_threads(1)  # replaces the thread pool that the fork has lost, before threads race for it
        if hook:
            hook()
        from lorasmith.runs.ending import run_script

        run_script(script.main)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(script: Any, words: list[str], hook: Callable[[], None] | None = None, limit: float = 120) -> Ended:
    """A run of the script, waited for; -9 when it was killed, -99 when it ran past `limit` seconds."""
    began = time.perf_counter()
    with tempfile.NamedTemporaryFile() as log:
        pid = start(script, words, hook, Path(log.name))
        while True:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            if time.perf_counter() - began > limit:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return Ended(-99, Path(log.name).read_text(), limit)
            time.sleep(0.01)
        text = Path(log.name).read_text(errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), text, time.perf_counter() - began)


def each(items: Sequence[Any], trial: Callable[[Any], str], at_once: int | None = None) -> list[str]:
    """What went wrong in the trials of some items, as many at a time as there are cores; a good one gives nothing."""
    workers = max(1, min(at_once or os.cpu_count() or 1, len(items)))
    with tempfile.TemporaryDirectory() as name:
        children = []
        for worker in range(workers):
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                found = []
                for item in items[worker::workers]:
                    try:
                        found.append(trial(item))
                    except BaseException as error:  # a broken trial is a failed one
                        found.append(f"{item}: the trial itself broke: {error!r}")
                (Path(name) / str(worker)).write_bytes(pickle.dumps(found))
                os._exit(0)
            children.append(pid)
        for pid in children:
            os.waitpid(pid, 0)
        texts = [text for worker in range(workers) for text in pickle.loads((Path(name) / str(worker)).read_bytes())]
    assert len(texts) == len(items)
    return [text for text in texts if text]


def counted(word: str, items: Sequence[Any], failures: list[str], **more: Any) -> dict[str, Any]:
    """A row's result: how many of the items were good, by the row's own word, and the first failures."""
    return {word: len(items) - len(failures), "of": len(items), **more, "failures": failures[:10]}


def chosen(items: Sequence[Any], sample: int, seed: int) -> list[Any]:
    """All items, or as many as a sample takes."""
    return random.Random(seed).sample(list(items), min(sample, len(items))) if sample else list(items)


def digest(folder: Path) -> str:
    """SHA-256 of a run's final adapter, or nothing without one."""
    path = folder / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder for one trial's run."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


def undisturbed(script: Any, extra: Sequence[str] = ()) -> str:
    """The digest of an undisturbed run's adapter."""
    with place() as folder:
        whole = run(script, [*BASIC, f"output_dir={folder}", *extra])
        assert whole.code == 0, whole.text
        return digest(folder)


def stop_behind(script: Any, folder: Path, step: int, extra: list[str] | None = None) -> Ended:
    """A run that is asked to stop behind a step, in its own process."""

    def hook() -> None:
        from lorasmith.listening import listener
        from lorasmith.reliability.stopping import SafeStop

        before = SafeStop.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                listener.asked = "the trial asked"
            before(self, args, state, control, **kwargs)

        SafeStop.on_step_end = on_step_end  # type: ignore[method-assign]

    return run(script, [*BASIC, f"output_dir={folder}", *(extra or [])], hook)


def losses(folder: Path) -> list[float]:
    """The training losses of a run."""
    path = folder / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event["loss"] for event in events if "loss" in event]
