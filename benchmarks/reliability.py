"""The scorecard: how a run survives kills, broken checkpoints, full disks, signals and numbers that are none.

    python benchmarks/reliability.py [--rows R1,R2,...] [--sample N] [--seed 0]     # writes benchmarks/reliability.json

Each trial is a real run of scripts/sft.py in a process forked behind the imports, so that it costs a second or two. A
row gives counts; what stock does was measured before on the same library versions (stock, with its figure's source).
"""

import argparse
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
STEPS = 8
BASIC = [
    "recipes/quickstart.yaml", "data.train=quickstart/data/heldout.jsonl", "data.eval=null", "model.quantization=none",
    "run.effective_batch=4", "run.micro_batch=4", "adapter.rank=4", "adapter.dropout=0.1", f"trainer.max_steps={STEPS}",
    "trainer.save_steps=2", "trainer.logging_steps=1", "trainer.eval_strategy=no", "model.dtype=float32",
]  # fmt: skip
STOCK = {
    "R1": "3 of 16", "R2": "0 of 12", "R3": "11 of 11 random order, 6 of 11 streaming, 3 of 5 grouped", "R4": "0 of 3",
    "R5": "0 of 2, 2 orphans", "R9": "0 of 1, 1 shipped", "R12": "1 of 7 warns", "R17": "no", "R18": "none in 150 s",
}  # fmt: skip


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


def digest(folder: Path) -> str:
    """SHA-256 of a run's final adapter, or nothing without one."""
    path = folder / "adapter_model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder for one trial's run."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name) / "run"


# --- crash points ----------------------------------------------------------------------------------------------------


class Events:
    """The file events of a run in its folder; at a chosen one the process is killed, or asked to stop.

    Args:
        at: Index of the event, or -1 to count only.
        mode: before (killed), torn (the newest file is cut in half, then killed), or term (SIGTERM).
    """

    def __init__(self, folder: Path, at: int, mode: str, counter: Path | None = None) -> None:
        self.folder, self.at, self.mode, self.counter = str(folder), at, mode, counter
        self.count = 0

    def install(self) -> None:
        """Called in the run's own process."""
        import safetensors.torch
        import torch

        sys.addaudithook(self._heard)
        for module, name in ((torch, "save"), (safetensors.torch, "save_file")):
            setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Any) -> Any:
        """Writers in C++ and Rust open their files unheard: an event before and one behind them."""

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.event()
            result = function(*args, **kwargs)
            self.event()
            return result

        return wrapped

    def _heard(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
            and args
            and isinstance(args[0], str | bytes | Path)
        ):
            path = os.fsdecode(args[0])
            writes = event != "open" or (isinstance(args[1], str) and set(args[1]) & set("wax+"))
            if writes and path.startswith(self.folder):
                self.event()

    def event(self) -> None:
        """One more; the chosen one is the last."""
        here, self.count = self.count, self.count + 1
        if self.counter:
            self.counter.write_text(str(self.count)) if not self.folder.startswith(str(self.counter)) else None
        if here != self.at:
            return
        if self.mode == "term":
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.mode == "torn":
            files = [path for path in Path(self.folder).rglob("*") if path.is_file()]
            if files:
                newest = max(files, key=lambda path: path.stat().st_mtime_ns)
                os.truncate(newest, newest.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def count_events(script: Any) -> tuple[int, str]:
    """File events of an undisturbed run, and the digest of its adapter."""
    with place() as folder, tempfile.TemporaryDirectory() as other:
        counter = Path(other) / "count"
        events = Events(folder, -1, "before", counter)
        ended = run(script, [*BASIC, f"output_dir={folder}"], events.install)
        assert ended.code == 0, ended.text
        return int(counter.read_text()), digest(folder)


def crash(script: Any, at: int, mode: str, expected: str) -> str:
    """One crash point: killed there, then the same command again; nothing when the adapter is the undisturbed one's."""
    with place() as folder:
        words = [*BASIC, f"output_dir={folder}"]
        first = run(script, words, Events(folder, at, mode).install)
        wanted = (0, 75) if mode == "term" else (-9,)
        if first.code not in wanted:
            return f"{mode} at event {at}: ended with {first.code}: {first.text[-300:]}"
        again = run(script, words)
        if again.code:
            return f"{mode} at event {at}: the same command again ended with {again.code}: {again.text[-300:]}"
        return "" if digest(folder) == expected else f"{mode} at event {at}: another adapter"


def r1(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Kills and stops at every file event of a run: the same command again gives the same adapter, byte for byte."""
    total, expected = count_events(script)
    points = [(at, mode) for at in range(total) for mode in ("before", "torn", "term")]
    if sample:
        points = random.Random(seed).sample(points, min(sample, len(points)))
    failures = [text for at, mode in points if (text := crash(script, at, mode, expected))]
    return {"survived": len(points) - len(failures), "of": len(points), "file_events": total, "failures": failures[:10]}


# --- broken checkpoints ----------------------------------------------------------------------------------------------


def faults() -> dict[str, Callable[[Path], str]]:
    """Single faults of a checkpoint; each gives the file that it touched."""

    def cut(name: str, share: float) -> Callable[[Path], str]:
        def apply(folder: Path) -> str:
            os.truncate(folder / name, int((folder / name).stat().st_size * share))
            return name

        return apply

    def flip(name: str) -> Callable[[Path], str]:
        def apply(folder: Path) -> str:
            data = bytearray((folder / name).read_bytes())
            data[len(data) // 2] ^= 0x10
            (folder / name).write_bytes(data)
            return name

        return apply

    def zero(name: str) -> Callable[[Path], str]:
        def apply(folder: Path) -> str:
            (folder / name).write_bytes(bytes((folder / name).stat().st_size))
            return name

        return apply

    def remove(name: str) -> Callable[[Path], str]:
        def apply(folder: Path) -> str:
            (folder / name).unlink()
            return "" if name == "manifest.json" else name

        return apply

    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
    found: dict[str, Callable[[Path], str]] = {}
    for name in names:
        found |= {f"{name} removed": remove(name), f"{name} bit flipped": flip(name), f"{name} halved": cut(name, 0.5)}
    found |= {f"{name} zeroed": zero(name) for name in names[:2]}
    found |= {"manifest.json removed": remove("manifest.json"), "manifest.json halved": cut("manifest.json", 0.5)}
    return found | {"adapter_config.json emptied": cut("adapter_config.json", 0.0)}


def r2(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Faults in the newest of two checkpoints: the older one is taken, the broken file named, the adapter the same."""
    _, expected = count_events(script)
    chosen = list(faults().items())
    if sample:
        chosen = random.Random(seed).sample(chosen, min(sample, len(chosen)))
    failures = []
    with place() as master:
        stop_behind(script, master, 6)
        for name, apply in chosen:
            with place() as folder:
                shutil.copytree(master, folder)
                touched = apply(folder / "checkpoint-6")
                again = run(script, [*BASIC, f"output_dir={folder}"])
                named = (touched in again.text) if touched else "checkpoint-6" in again.text
                if again.code or digest(folder) != expected or not named or "behind step 4" not in again.text:
                    failures.append(f"{name}: {again.code} {again.text[-300:]}")
    return {"recovered": len(chosen) - len(failures), "of": len(chosen), "failures": failures[:10]}


def stop_behind(script: Any, folder: Path, step: int, extra: list[str] | None = None) -> Ended:
    """A run that is asked to stop behind a step, in its own process."""

    def hook() -> None:
        from lorasmith.reliability.stopping import SafeStop, listener

        before = SafeStop.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                listener.asked = "the trial asked"
            before(self, args, state, control, **kwargs)

        SafeStop.on_step_end = on_step_end  # type: ignore[method-assign]

    return run(script, [*BASIC, f"output_dir={folder}", *(extra or [])], hook)


# --- exact resume ----------------------------------------------------------------------------------------------------

WAYS = {
    "random order": [],
    "accumulation": ["run.micro_batch=2"],
    "packing": ["trainer.packing=true", "trainer.max_length=128"],
    "DoRA": ["adapter.method=dora"],
    "checkpointing": ["run.gradient_checkpointing=true"],
    "several epochs": ["data.train=quickstart/data/heldout.jsonl", "data.eval_fraction=0.5", "run.effective_batch=16"],
    "evaluation": ["data.eval=quickstart/data/heldout.jsonl", "data.train=quickstart/data/train.jsonl", "trainer.eval_strategy=steps", "trainer.eval_steps=3"],
    "nf4": ["model.quantization=nf4"],
}  # fmt: skip


def r3(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Stopped behind step k and resumed, some twice: the adapter is the uninterrupted run's, byte for byte."""
    trials = [(name, ks) for name in WAYS for ks in [*((k,) for k in range(1, STEPS)), (2, 5), (3, 4)]]
    if sample:
        trials = random.Random(seed).sample(trials, min(sample, len(trials)))
    failures, expected = [], {}
    for name, ks in trials:
        extra = WAYS[name]
        if name not in expected:
            with place() as folder:
                whole = run(script, [*BASIC, f"output_dir={folder}", *extra])
                expected[name] = digest(folder) or f"none: {whole.text[-300:]}"
        with place() as folder:
            codes = [stop_behind(script, folder, k, extra).code for k in ks]
            last = run(script, [*BASIC, f"output_dir={folder}", *extra])
            if codes != [75] * len(ks) or last.code or digest(folder) != expected[name]:
                failures.append(f"{name}, stopped at {ks}: {codes} {last.code} {last.text[-200:]} {expected[name]}")
    done = len(trials)
    return {"exact": done - len(failures), "of": done, "ways": list(WAYS), "failures": failures[:10]}


# --- full disk -------------------------------------------------------------------------------------------------------


def r4(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A file size limit in place of a full disk, at several sizes: exit 75, the older checkpoint whole, then resumed."""
    _, expected = count_events(script)
    sizes = [40_000, 150_000, 250_000, 300_000, 350_000, 400_000]
    if sample:
        sizes = random.Random(seed).sample(sizes, min(sample, len(sizes)))
    failures = []
    for size in sizes:

        def hook(size: int = size) -> None:
            import resource

            from lorasmith.reliability.rehearsal import Rehearsal

            Rehearsal._save = lambda self, args: None  # type: ignore[method-assign]  # the fault comes later than it
            from lorasmith.reliability import guarded

            before = guarded.checkpoints.rotate

            def rotate(*args: Any) -> None:  # behind the first commit the disk is full
                before(*args)
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

            guarded.checkpoints.rotate = rotate  # type: ignore[assignment]

        with place() as folder:
            words = [*BASIC, f"output_dir={folder}"]
            first = run(script, words, hook)
            again = run(script, words)
            kept = "behind step 2" in again.text or first.code == 0
            if first.code not in (0, 75) or again.code or digest(folder) != expected or not kept:
                failures.append(f"{size} bytes: {first.code} {first.text[-200:]} / {again.code} {again.text[-200:]}")
    return {"resumed": len(sizes) - len(failures), "of": len(sizes), "failures": failures[:10]}


# --- numbers that are none -------------------------------------------------------------------------------------------


def r9(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A NaN or infinity in a weight, an embedding, a gradient or the loss: stopped before the update, nothing shipped."""
    kinds = ["embedding", "layer", "head", "gradient", "loss", "infinite gradient"]
    failures = []
    for kind in kinds:

        def hook(kind: str = kind) -> None:
            import torch

            from lorasmith.reliability.finite import FiniteGuard

            before = FiniteGuard.on_step_begin

            def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                before(self, args, state, control, **kwargs)
                if state.global_step != 4:
                    return
                model = self.trainer.model
                if kind == "embedding":
                    model.get_input_embeddings().weight.data[5:] = float("nan")
                elif kind == "head":
                    model.get_output_embeddings().weight.data[:] = float("nan")
                elif kind == "layer":
                    next(w for n, w in model.named_parameters() if "layers.2" in n).data[:] = float("nan")
                elif kind == "loss":
                    whole = self.trainer.compute_loss
                    self.trainer.compute_loss = lambda *a, **k: whole(*a, **k) * float("nan")
                else:
                    value = float("nan") if kind == "gradient" else float("inf")
                    weight = next(w for n, w in model.named_parameters() if w.requires_grad)
                    weight.register_hook(lambda grad: torch.full_like(grad, value))

            FiniteGuard.on_step_begin = on_step_begin  # type: ignore[method-assign]

        with place() as folder:
            ended = run(script, [*BASIC, f"output_dir={folder}"], hook)
            named = "step 5" in ended.text and "heldout.jsonl:" in ended.text
            if ended.code != 4 or not named or digest(folder) or not (folder / "checkpoint-4/manifest.json").exists():
                failures.append(f"{kind}: {ended.code} {ended.text[-300:]}")
    return {"stopped": len(kinds) - len(failures), "of": len(kinds), "failures": failures}


# --- drift -----------------------------------------------------------------------------------------------------------

DRIFTS = [
    "trainer.learning_rate=1e-3", "seed=7", "trainer.max_steps=9", "run.effective_batch=8", "adapter.alpha=8", "adapter.rank=8",
    "adapter.dropout=0.2", "trainer.lr_scheduler_type=linear", "trainer.warmup_steps=2", "trainer.weight_decay=0.1",
    "trainer.optim=sgd", "trainer.max_grad_norm=0.5", "adapter.method=dora", "model.quantization=nf4", "trainer.max_length=64",
    "data.train=quickstart/data/train.jsonl", "data.train_on=all", "run.gradient_checkpointing=true", "run.micro_batch=2",
    "adapter.target_modules=[q_proj]",
]  # fmt: skip


def r12(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """An interrupted run started with another setting: refused, the setting named with both values."""
    chosen = random.Random(seed).sample(DRIFTS, min(sample or len(DRIFTS), len(DRIFTS)))
    failures = []
    with place() as folder:
        stop_behind(script, folder, 3)
        for change in chosen:
            ended = run(script, [*BASIC, f"output_dir={folder}", change])
            key = change.partition("=")[0]
            named = (key in ended.text or "rows was" in ended.text) and " was " in ended.text
            if ended.code != 2 or not named or not (folder / "checkpoint-3").exists():
                failures.append(f"{change}: {ended.code} {ended.text[-200:]}")
    return {"refused": len(chosen) - len(failures), "of": len(chosen), "failures": failures[:10]}


# --- hang, memory ----------------------------------------------------------------------------------------------------


def r17(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Out of memory at more than k rows: done in halves, with the losses of a run that had memory, to 1e-6."""
    failures = []
    words = [*BASIC, "adapter.dropout=0", "run.effective_batch=8", "run.micro_batch=8"]
    with place() as folder:
        run(script, [*words, f"output_dir={folder}"])
        expected = losses(folder)
    limits = [(1, 0), (2, 0), (4, 0), (4, 3)]
    for limit, since in limits:

        def hook(limit: int = limit, since: int = since) -> None:
            import torch
            from trl import SFTTrainer

            whole = SFTTrainer.compute_loss

            def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if len(inputs["input_ids"]) > limit and self.state.global_step >= since and model.training:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return whole(self, model, inputs, *args, **kwargs)

            SFTTrainer.compute_loss = compute_loss

        with place() as folder:
            ended = run(script, [*words, f"output_dir={folder}"], hook)
            found = losses(folder)
            close = len(found) == len(expected) and all(
                abs(a - b) < 1e-6 * max(1, abs(b)) for a, b in zip(found, expected, strict=True)
            )
            if ended.code or not close or ended.text.count("out of memory at") != 1:
                failures.append(f"{limit} rows from step {since}: {ended.code} {ended.text[-300:]}")
    return {"same_losses": len(limits) - len(failures), "of": len(limits), "failures": failures}


def losses(folder: Path) -> list[float]:
    """The training losses of a run."""
    path = folder / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [event["loss"] for event in events if "loss" in event]


def r18(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A process that hangs in a step ends by itself within its limit, with stacks and exit code 5."""

    def hook() -> None:
        from trl import SFTTrainer

        whole = SFTTrainer.compute_loss

        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 3:
                time.sleep(600)
            return whole(self, *args, **kwargs)

        SFTTrainer.compute_loss = compute_loss

    with place() as folder:
        ended = run(script, [*BASIC, f"output_dir={folder}", "run.hang_minutes=0.05"], hook, limit=60)
        status = json.loads((folder / "status.json").read_text())
        stacks = (folder / "private/stacks-rank-0.txt").exists()
        good = (
            ended.code == 5
            and status["exit_code"] == 5
            and stacks
            and "compute_loss" in (folder / "private/stacks-rank-0.txt").read_text()
        )
    return {
        "ended": int(good),
        "of": 1,
        "seconds": round(ended.seconds, 1),
        "failures": [] if good else [ended.text[-300:]],
    }


# --- signals through the launcher ------------------------------------------------------------------------------------


def r5(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """TERM, INT and USR1 at random moments, to the run itself: exit 75, at most one step lost, then the same adapter."""
    _, expected = count_events(script)
    with place() as folder:
        whole = run(script, [*BASIC, f"output_dir={folder}"]).seconds
    rng = random.Random(seed)
    count = sample or 60
    failures = []
    for i in range(count):
        number = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[i % 3]
        with place() as folder:
            words = [*BASIC, f"output_dir={folder}"]
            # Not before the handlers are there: a process that is still importing ends at once, which loses nothing.
            wait = 0.3 + rng.random() * (whole - 0.3)
            pid = start(script, words)
            time.sleep(wait)
            os.kill(pid, number)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            half_trained = code == 75 and digest(folder) not in ("", expected)
            again = run(script, words)
            if code not in (0, 75) or half_trained or again.code or digest(folder) != expected:
                failures.append(
                    f"{signal.Signals(number).name} after {wait:.2f} s: {code} / {again.code} {again.text[-200:]}"
                )
    return {"safe": count - len(failures), "of": count, "failures": failures[:10]}


# --- kill -9 of the whole script, and what safety costs ---------------------------------------------------------------


def kill_nine(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """kill -9 at a random moment of sft.py recipes/quickstart.yaml, then the same command: the adapter is the same."""
    rng = random.Random(seed)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(os.cpu_count())}

    def begin(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "scripts/sft.py", "recipes/quickstart.yaml", f"output_dir={folder}"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    with place() as folder:
        began = time.perf_counter()
        assert begin(folder).wait() == 0
        whole, expected = time.perf_counter() - began, digest(folder)
    count, failures = sample or 10, []
    for _ in range(count):
        with place() as folder:
            process, moment = begin(folder), rng.random() * whole
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            code = begin(folder).wait()
            if code or digest(folder) != expected:
                failures.append(f"killed after {moment:.1f} of {whole:.1f} s: {code}")
    return {"same": count - len(failures), "of": count, "failures": failures}


def chaos(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """The independent ckpt-chaos harness on the whole script: no hard fail, no silent divergence."""
    words = [
        "run", "--max-points", str(sample or 60), "--modes", "before,torn,term", "--step-regex", r"behind step (\d+)",
        "--result-file", "{out}/adapter_model.safetensors", "--timeout", "300",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = ["ckpt-chaos", *words, "--work", f"{folder}/work", "--junit", str(junit), "--", sys.executable]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        done = subprocess.run(
            [*command, "scripts/sft.py", *BASIC, "output_dir={out}"], env=environment, capture_output=True, text=True
        )
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite")) if junit.exists() else []
        total = sum(int(suite.get("tests", 0)) for suite in suites)
        failed = sum(int(suite.get("failures", 0)) + int(suite.get("errors", 0)) for suite in suites)
    failures = [] if done.returncode == 0 and total else [done.stdout[-1500:] + done.stderr[-500:]]
    return {"passed": total - failed, "of": total, "failures": failures}


def cost(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Training time with every guard over training time without, at a save every 100 steps; in turn, the medians."""

    def without() -> None:
        from lorasmith.reliability import checkpoints
        from lorasmith.reliability.finite import FiniteGuard
        from lorasmith.reliability.stopping import SafeStop

        FiniteGuard.on_pre_optimizer_step = lambda *args, **kwargs: None  # type: ignore[method-assign]
        SafeStop.on_step_end = lambda *args, **kwargs: None  # type: ignore[method-assign]
        checkpoints.commit = lambda folder: None  # type: ignore[assignment]

    words = [*BASIC, "trainer.max_steps=100", "trainer.save_steps=100", "trainer.logging_steps=50"]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(5):
        for name, hook in (("with", None), ("without", without)):
            with place() as folder:
                run(script, [*words, f"output_dir={folder}"], hook)
                seconds[name].append(json.loads((folder / "run.json").read_text())["speed"]["seconds"])
    middle = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    share = middle["with"] / middle["without"] - 1
    return {
        "under_2_percent": int(share < 0.02),
        "of": 1,
        "share": round(share, 4),
        "seconds_of": seconds,
        "failures": [],
    }


ROWS: dict[str, Callable[[Any, int, int], dict[str, Any]]] = {
    "R1": r1, "R2": r2, "R3": r3, "R4": r4, "R5": r5, "R9": r9, "R12": r12, "R17": r17, "R18": r18,
    "kill": kill_nine, "chaos": chaos, "cost": cost,
}  # fmt: skip


def table(report: dict[str, Any]) -> str:
    """The scorecard in Markdown."""
    lines = ["| | what | ours | stock |", "|---|---|---|---|"]
    for name in (one for one in ROWS if one in report["rows"]):
        found = report["rows"][name]
        good = next(value for key, value in found.items() if key not in ("of", "failures"))
        what = (ROWS[name].__doc__ or "").splitlines()[0]
        ours = f"{found['share']:+.1%} of the time" if name == "cost" else f"{good} of {found['of']}"
        lines.append(f"| {name} | {what} | {ours} | {STOCK.get(name, '')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="such as R1,R2; nothing is written then, but with --update")
    parser.add_argument("--update", action="store_true", help="put the rows into the results that are there")
    parser.add_argument("--sample", type=int, default=0, help="trials of each row; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    script = load_script()
    report: dict[str, Any] = {
        "seed": arguments.seed,
        "sample": arguments.sample,
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "rows": {},
    }
    for name in arguments.rows.split(",") if arguments.rows else ROWS:
        began = time.perf_counter()
        found = ROWS[name](script, arguments.sample, arguments.seed)
        found |= {"seed": arguments.seed, "sample": arguments.sample}
        report["rows"][name] = found | {"seconds": found.get("seconds", round(time.perf_counter() - began, 1))}
        print(name, json.dumps(report["rows"][name])[:1500], flush=True)
    path = ROOT / "benchmarks/reliability.json"
    if arguments.update and path.exists():
        report["rows"] = json.loads(path.read_text())["rows"] | report["rows"]
    if arguments.update or not arguments.rows:
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    sys.exit(any(found["failures"] for found in report["rows"].values()))


if __name__ == "__main__":
    main()
