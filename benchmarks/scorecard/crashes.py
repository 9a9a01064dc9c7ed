"""Rows on kills, broken checkpoints, full disks and resuming."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scorecard.events import Events, count_events
from scorecard.trial import BASIC, STEPS, chosen, counted, digest, each, place, run, stop_behind, undisturbed


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
    points = chosen(points, sample, seed)
    failures = each(points, lambda point: crash(script, *point, expected))
    return counted("survived", points, failures, file_events=total)


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
    expected = undisturbed(script)
    names = chosen(list(faults()), sample, seed)
    with place() as master:
        stop_behind(script, master, 6)

        def trial(name: str) -> str:
            with place() as folder:
                shutil.copytree(master, folder)
                touched = faults()[name](folder / "checkpoint-6")
                again = run(script, [*BASIC, f"output_dir={folder}"])
                named = (touched in again.text) if touched else "checkpoint-6" in again.text
                good = again.code == 0 and digest(folder) == expected and named and "behind step 4" in again.text
                return "" if good else f"{name}: {again.code} {again.text[-300:]}"

        return counted("recovered", names, each(names, trial))


WAYS = {
    "random order": [],
    "accumulation": ["run.micro_batch=2"],
    "packing": ["trainer.packing=true", "trainer.max_length=128"],
    "DoRA": ["adapter.method=dora"],
    "checkpointing": ["run.gradient_checkpointing=true"],
    "length-sorted": ["trainer.train_sampling_strategy=group_by_length", "data.eval_fraction=0.5", "run.effective_batch=16"],
    "several epochs": ["data.train=quickstart/data/heldout.jsonl", "data.eval_fraction=0.5", "run.effective_batch=16"],
    "evaluation": ["data.eval=quickstart/data/heldout.jsonl", "data.train=quickstart/data/train.jsonl", "trainer.eval_strategy=steps", "trainer.eval_steps=3"],
    "nf4": ["model.quantization=nf4"],
}  # fmt: skip


def r3(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Stopped behind step k and resumed, some twice: the adapter is the uninterrupted run's, byte for byte."""
    trials = [(name, ks) for name in WAYS for ks in [*((k,) for k in range(1, STEPS)), (2, 5), (3, 4)]]
    trials = chosen(trials, sample, seed)
    expected = {name: undisturbed(script, WAYS[name]) for name in dict.fromkeys(name for name, _ in trials)}

    def trial(one: tuple[str, tuple[int, ...]]) -> str:
        name, ks = one
        with place() as folder:
            codes = [stop_behind(script, folder, k, WAYS[name]).code for k in ks]
            last = run(script, [*BASIC, f"output_dir={folder}", *WAYS[name]])
            if codes != [75] * len(ks) or last.code or digest(folder) != expected[name]:
                return f"{name}, stopped at {ks}: {codes} {last.code} {last.text[-200:]} {expected[name]}"
        return ""

    return counted("exact", trials, each(trials, trial), ways=list(WAYS))


def r4(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A file size limit in place of a full disk, at several sizes: exit 75, the older checkpoint whole, then resumed."""
    expected = undisturbed(script)
    sizes = chosen(range(40_000, 440_000, 40_000), sample, seed)

    def trial(size: int) -> str:
        def hook() -> None:
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
            good = first.code in (0, 75) and again.code == 0 and digest(folder) == expected and kept
            return "" if good else f"{size}: {first.code} {first.text[-200:]} / {again.code} {again.text[-200:]}"

    return counted("resumed", sizes, each(sizes, trial))


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
        "run", "--max-points", str(sample or 16), "--modes", "before,torn,term", "--step-regex", r"behind step (\d+)",
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
