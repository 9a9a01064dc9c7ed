"""How long the processes of a machine take to have their rows, and what these hold in memory: each for itself, or shared.

    python benchmarks/startup.py [--rows 50000] [--processes 2 4] [--repeats 3]   # writes benchmarks/startup.json; 15 minutes

Each process does what sft.py does before it loads the model: read, recognise, tokenize and audit generated
conversations, and make the data set of them. Both ways take turns. Seconds are those behind the imports, which are the
same for both, until a process has its data set. Memory is what the rows added: what a process holds for itself, and the
machine's in all, in which a page that several processes map counts once. Each launch has a LORASMITH_CACHE of its own,
in which no tokens are; "seen before" launches again with the cache that a run on the same rows left.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
WORDS = "the order of two red chairs for Lisbon comes on Monday and costs more than it did when it was made".split()
Found = list[dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", metavar="ROWS", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one)))
        return
    launches: dict[str, list[Found]] = {}
    with tempfile.TemporaryDirectory() as name:
        rows = write_rows(Path(name) / "rows.jsonl", arguments.rows)
        for count in arguments.processes:
            for _ in range(arguments.repeats):
                for way in ("each for itself", "shared"):
                    cache = Path(name) / "cache"
                    for known in ("new rows", "rows seen before"):
                        found = launch(rows, cache, count, way == "shared")
                        launches.setdefault(f"{count} processes, {known}, {way}", []).append(found)
                    shutil.rmtree(cache)
        size = rows.stat().st_size
    median = {what: summary(found) for what, found in launches.items()}
    report = {
        "command": f"python benchmarks/startup.py --rows {arguments.rows} "
        f"--processes {' '.join(map(str, arguments.processes))} --repeats {arguments.repeats}",
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "rows": arguments.rows,
        "file_mib": round(size / 2**20, 1),
        "median": median,
        "launches": launches,
    }
    (ROOT / "benchmarks/startup.json").write_text(json.dumps(report, indent=1) + "\n")
    print(table(median))


def write_rows(path: Path, count: int) -> Path:
    """Conversations of 10 to 200 words, the same each time."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            asked, told = (" ".join(draw.choices(WORDS, k=draw.randint(5, 100))) for _ in range(2))
            turns = [{"role": "user", "content": f"{number}: {asked}"}, {"role": "assistant", "content": told}]
            file.write(json.dumps({"messages": turns}) + "\n")
    return path


def launch(rows: Path, cache: Path, count: int, share: bool) -> Found:
    """Start the processes of a machine together and give what each of them found, in the order of their ranks."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "LORASMITH_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_PORT": str(os.getpid()), "WORLD_SIZE": str(count), "TOKENIZERS_PARALLELISM": "true"}
    if share:
        environment["LOCAL_WORLD_SIZE"] = str(count)
    words = [sys.executable, __file__, "--one", str(rows)]
    started = [
        subprocess.Popen(
            words, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]
    said = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return [json.loads(text) for text in said]


def one(rows: str) -> dict[str, Any]:
    """In a process of its own: the rows as sft.py has them before it loads the model."""
    from transformers import AutoTokenizer
    from trl.chat_template_utils import get_training_chat_template  # noqa: F401  (imported by the audit)

    from lorasmith.data.prepare import as_dataset, prepare, read_train_and_eval
    from lorasmith.data.sharing import dataset_of, first_reads, shared
    from lorasmith.recipe import Data

    section = Data(train=rows)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "quickstart/base")
    before, start = held(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        read = first_reads(lambda: read_train_and_eval(section, 0))
        made = shared(lambda: prepare(section, tokenizer, *read(), 512))
        rows_of = dataset_of(made.train, as_dataset, made.fingerprint)
    seconds = time.perf_counter() - start
    tokens = sum(len(ids) for ids in rows_of["input_ids"])  # walks all of them, so that every page is there
    after = held()
    told = {name: round((after[name] - before[name]) / 2**10, 1) for name in after}
    time.sleep(1)  # a process that has ended would not share its pages
    return {"seconds": round(seconds, 2), "own_mib": told["private"], "machine_mib": told["share"], "tokens": tokens}


def held() -> dict[str, int]:
    """KiB that this process holds for itself, and its share of all that is mapped."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {"private": sizes["Private_Clean"] + sizes["Private_Dirty"], "share": sizes["Pss"]}


def summary(launches: list[Found]) -> dict[str, float]:
    """Medians over the launches: of the first process, of the slowest other, and of all together."""

    def median(values: Any) -> float:
        return round(statistics.median(values), 2)

    return {
        "first_s": median(found[0]["seconds"] for found in launches),
        "others_s": median(max(one["seconds"] for one in found[1:]) for found in launches),
        "first_own_mib": median(found[0]["own_mib"] for found in launches),
        "others_own_mib": median(statistics.mean(one["own_mib"] for one in found[1:]) for found in launches),
        "machine_mib": median(sum(one["machine_mib"] for one in found) for found in launches),
    }


def table(median: dict[str, dict[str, float]]) -> str:
    lines = [
        "| launch | the first rank has its rows | the others | the first holds | the others hold, each | the machine |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for what, one in median.items():
        lines.append(
            f"| {what} | {one['first_s']:.1f} s | {one['others_s']:.1f} s | {one['first_own_mib']:.0f} MiB | "
            f"{one['others_own_mib']:.0f} MiB | {one['machine_mib']:.0f} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
