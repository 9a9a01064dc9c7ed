"""How long a run takes to start: a refused recipe, the quickstart's first step, quantized weights, and the rows.

    python benchmarks/start.py [--gib 1] [--repeats 3]     # writes benchmarks/start.json; about 5 minutes

Each time is that of a process of its own, with a LORASMITH_CACHE of its own. Cold is the first start, with the installed
packages out of the system's file cache. The large model is a random Llama in bfloat16 made on the spot, so its files are
in the file cache, which favours the first load: it reads four times the bytes. Rows are compared with trl's preparation
by benchmarks/audit.py, run here with 10,000 conversations.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import audit

ROOT = Path(__file__).parent.parent
ROWS = 10_000
Times = dict[str, list[dict[str, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the large model in 16 bit")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "QUANTIZATION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(*arguments.load)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = refused(folder, arguments.repeats)
        runs |= first_steps(folder, arguments.repeats)
        runs |= loads(folder, arguments.gib, arguments.repeats)
        runs |= rows(folder, arguments.repeats)
    report = {
        "command": f"python benchmarks/start.py --gib {arguments.gib:g} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "load_at_the_end": round(os.getloadavg()[0], 1),  # processes that wanted to run, the last of ours among them
        "median": {what: {key: middle(found, key) for key in found[0]} for what, found in runs.items()},
        "runs": runs,
    }
    (ROOT / "benchmarks/start.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(report["median"]))


def middle(found: list[dict[str, float]], key: str) -> float:
    return sorted(one[key] for one in found)[len(found) // 2]


def timed(words: list[str], cache: Path, code: int = 0) -> tuple[str, dict[str, float]]:
    """What a process says, and the time between asking for it and its end: all of it, and that of the processor."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "LORASMITH_CACHE": str(cache)}
    start, before = time.perf_counter(), os.times()
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == code, done.stderr
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout + done.stderr, {"process_s": round(time.perf_counter() - start, 2), "cpu_s": round(cpu, 2)}


def refused(folder: Path, repeats: int) -> Times:
    """A recipe with a mistyped key, from the command to the error."""
    recipe = folder / "bad.yaml"
    recipe.write_text((ROOT / "recipes/quickstart.yaml").read_text().replace("learning_rate", "learning_rat"))
    found = []
    for _ in range(repeats):
        said, times = timed(["scripts/sft.py", str(recipe)], folder / "none", code=2)
        assert "Did you mean `learning_rate`?" in said
        found.append(times)
    return {"a recipe is refused": found}


def first_steps(folder: Path, repeats: int) -> Times:
    """The quickstart until the end of its first update, as the run itself records it."""
    found: Times = {"quickstart's first step, cold": [], "quickstart's first step, warm": []}
    for i in range(repeats + 1):
        what = list(found)[i > 0]
        if i == 0:
            forget_files()
        out = folder / f"run-{i}"
        words = ["scripts/sft.py", "recipes/quickstart.yaml", f"output_dir={out}", "trainer.max_steps=2"]
        _, times = timed(words, folder / "cache")
        seconds = json.loads((out / "run.json").read_text())["speed"]["first_step_seconds"]
        found[what].append({"seconds": seconds, **times})
        print(what, found[what][-1], flush=True)
    return found


def forget_files() -> None:
    """Take the installed packages out of the system's file cache, as after a boot; what others use stays there."""
    if not hasattr(os, "posix_fadvise"):
        return
    os.sync()
    for path in Path(sysconfig.get_path("purelib")).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loads(folder: Path, gib: float, repeats: int) -> Times:
    """A quantized base loaded without a copy, with the copy being written, and from it."""
    subprocess.run(
        [sys.executable, "-c", "import sys, merge, pathlib; merge.make_model(pathlib.Path(sys.argv[1]), float(sys.argv[2]))",
         str(folder), str(gib)],
        check=True, cwd=ROOT / "benchmarks", env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True,
    )  # fmt: skip
    found: Times = {}
    for quantization in ("nf4", "int8"):
        for i in range(repeats):
            cache = folder / f"weights-{quantization}-{i}"
            for when in ("first", "second"):
                said, times = timed([__file__, "--load", str(folder / "base"), quantization], cache)
                assert ("found in the cache" in said) == (when == "second")
                one = {**json.loads(re.findall(r"^\{.*\}$", said, re.MULTILINE)[0]), **times}
                found.setdefault(f"{quantization}, {gib:g} GiB, {when} load", []).append(one)
                print(quantization, when, one, flush=True)
    return found


def load(folder: str, quantization: str) -> None:
    """Load a base behind the imports, then use it once, since mapped files are read when they are used."""
    import bitsandbytes  # noqa: F401
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    from lorasmith.models import load_base_model
    from lorasmith.recipe import Model

    start, cpu = time.perf_counter(), time.process_time()
    model = load_base_model(Model(name=folder, quantization=quantization), "bfloat16", "sdpa", "cpu")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    with torch.no_grad():
        model(torch.arange(8)[None])
    used = time.perf_counter() - start
    peak = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert peak
    found = {"seconds": seconds, "load_cpu_s": cpu, "used_s": used, "peak_gib": int(peak[1]) / 2**20}
    print(json.dumps({key: round(value, 2) for key, value in found.items()}))


def rows(folder: Path, repeats: int) -> Times:
    """Rows read, checked, rendered, tokenized and masked: ours against trl's, in turn."""
    path = folder / "train.jsonl"
    audit.write_rows(path, ROWS)
    found: Times = {f"{ROWS:,} chats prepared, {name}": [] for name in (audit.OURS, audit.TRL)}
    for _ in range(repeats):
        for name, times in zip((audit.OURS, audit.TRL), found.values(), strict=True):
            times.append(audit.measured(name, path))
            print(name, times[-1], flush=True)
    return found


def table(median: dict[str, dict[str, Any]]) -> str:
    """Markdown, as in docs/speed.md."""
    lines = ["| | seconds | its CPU time | whole process | its CPU time |", "|---|---|---|---|---|"]
    for what, one in median.items():
        shown = [one.get(key, "") for key in ("seconds", "load_cpu_s", "process_s", "cpu_s")]
        lines.append(f"| {what} | {' | '.join(str(value) for value in shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
