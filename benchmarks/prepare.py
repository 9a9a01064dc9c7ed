"""How fast a large file is prepared, and in how much memory, against datasets and datasketch written straightforwardly.

    pip install datasketch
    python benchmarks/prepare.py [--rows 1000000]     # writes benchmarks/prepare.json; over an hour for the default

Both read the same made-up file (prepare_rows.py) and do the same: mend Unicode, tags and white space, leave out exact,
normalised and near duplicates, rows that share 13 words in a row with an evaluation set, mask e-mail addresses, phone
numbers, IBANs, cards, IP addresses and keys, split 80/10/10, write jsonl. Each runs in a process of its own with as
many workers as cores. Memory is the proportional set size of a process and all below it, looked at twice a second.
"""

import argparse
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

OURS, BY_HAND = "ours", "datasets and datasketch"
HERE = Path(__file__).parent
SAMPLE = 20_000  # rows for the rates of the steps that ours does in one pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", choices=(OURS, BY_HAND))
    parser.add_argument("--folder", type=Path, help="where files are made and kept; by default a temporary one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        Phases(arguments.folder / "phases.jsonl").run(ours if arguments.only == OURS else by_hand, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        from prepare_rows import write_rows

        planted = write_rows(folder, arguments.rows)
        report = {"rows": arguments.rows, "bytes": (folder / "rows.jsonl").stat().st_size, "planted": dict(planted)}
        report["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
        for name in [arguments.only] if arguments.only else (OURS, BY_HAND):
            report[name] = measured(name, folder, arguments.rows)
            print(json.dumps(report[name], indent=1), flush=True)
        if not arguments.only:
            report["times_as_fast"] = round(report[BY_HAND]["seconds"] / report[OURS]["seconds"], 2)
            report["steps_of_one_pass"] = step_rates(folder)
    path = HERE / "prepare.json"
    if arguments.only and path.is_file():
        report = json.loads(path.read_text()) | report
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def table(report: dict[str, Any]) -> str:
    """Both sides phase by phase, in Markdown, and the rates of the steps that ours does in one pass."""
    lines = [
        f"{report['rows']:,} rows, {report['bytes'] / 1e6:,.0f} MB, {report['machine']}:",
        "",
        "| | seconds | rows/s | peak memory |",
        "|---|---|---|---|",
    ]
    for name in (OURS, BY_HAND):
        side = report[name]
        whole = f"{side['seconds']:,.0f} | {side['rows_per_second']:,} | {side['peak_gib']:.2f} GiB"
        lines.append(f"| **{'prepare.py' if name == OURS else name}** | {whole} |")
        lines += [
            f"| {one['phase']} | {one['seconds']:,.1f} | {one['rows_per_second']:,} | {one['peak_gib']:.2f} GiB |"
            for one in side["phases"]
        ]
    steps = ", ".join(f"{name} {rate:,}" for name, rate in report["steps_of_one_pass"].items())
    told = f"{report['times_as_fast']:.1f} times as fast. Steps of the one pass alone, rows/s in one process: {steps}."
    return "\n".join([*lines, "", told])


def measured(name: str, folder: Path, rows: int) -> dict[str, Any]:
    """Seconds and peak memory of each phase of one side, in a process of its own."""
    words = [sys.executable, __file__, "--child", "--only", name, "--folder", str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run(words, check=True, env=environment)
    phases = [json.loads(line) for line in (folder / "phases.jsonl").read_text().splitlines()]
    result = phases.pop()
    total = sum(one["seconds"] for one in phases)
    for one in phases:
        one["rows_per_second"] = round(rows / one["seconds"])
    return {
        "seconds": round(total, 1),
        "rows_per_second": round(rows / total),
        "peak_gib": max(one["peak_gib"] for one in phases),
        "phases": phases,
        **result,
    }


class Phases:
    """Times phases, and watches the memory of this process and those below it."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.peak, self.over = path, [], 0, False

    def run(self, work: Callable[..., dict[str, Any]], folder: Path) -> None:
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        result = work(folder, self)
        self.over = True
        self.path.write_text("".join(json.dumps(one) + "\n" for one in [*self.lines, result]))

    def phase(self, name: str, work: Callable[[], Any]) -> Any:
        self.peak, start = 0, time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
        time.sleep(0.6)  # the watcher looks once more
        self.lines.append({"phase": name, "seconds": round(seconds, 2), "peak_gib": round(self.peak / 2**30, 2)})
        print(self.lines[-1], flush=True)
        return result

    def _watch(self) -> None:
        me = psutil.Process()
        while not self.over:
            total = 0
            for one in [me, *me.children(recursive=True)]:
                try:
                    total += one.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)
            time.sleep(0.5)


def recipe_of(folder: Path) -> Any:
    from lorasmith.preparation import load_preparation

    values = {"sources": [str(folder / "rows.jsonl")], "output_dir": str(folder / "ours")}
    return load_preparation(None, values, [f"decontaminate.against=[{folder}/eval.jsonl]"])


def ours(folder: Path, phases: Phases) -> dict[str, Any]:
    """What scripts/prepare.py does, its steps timed."""
    from lorasmith.preparing import decide, gather, pipeline, write

    recipe = recipe_of(folder)
    chosen = phases.phase("look at the files", lambda: pipeline.plan(recipe))
    place = pipeline.open_folder(chosen, True)
    one_pass = "read, clean, decontaminate, mask, hash and sign"
    work = phases.phase(one_pass, lambda: pipeline.make_parts(chosen, place, os.cpu_count() or 1))
    fields = decide.fields_of(recipe, chosen.kinds)
    rows = phases.phase("load the numbers", lambda: decide.Rows(work, fields))
    decision = phases.phase("de-duplicate and split", lambda: decide.decide(recipe, rows))
    splits = phases.phase("write the splits", lambda: write.write_splits(rows, decision, place))

    def tell() -> Any:
        summary = gather.summarise(chosen, rows, decision, splits)
        write.write_all(chosen, summary, rows, decision, place)
        return summary

    summary = phases.phase("page, card and manifest", tell)
    left = {one.name: {"out": one.rows_out, "changed": one.changed, "removed": one.removed} for one in summary.steps}
    return {"left": left, "masked": summary.masked, "splits": {name: part.rows for name, part in splits.items()}}


def step_rates(folder: Path) -> dict[str, int]:
    """Rows a second of the steps of ours that are one pass, one by one, in one process."""
    from lorasmith.data import convert
    from lorasmith.preparing.clean import Cleaner
    from lorasmith.preparing.private import Masker
    from lorasmith.preparing.texts import everywhere, said
    from lorasmith.preparing.words import Words, signatures

    recipe = recipe_of(folder)
    with (folder / "rows.jsonl").open("rb") as file:
        lines = [line for line, _ in zip(file, range(SAMPLE), strict=False)]
    kind = "instruction+output"
    fields = convert.text_fields(kind)
    cleaner, wanted, words = Cleaner(recipe.clean, kind, fields), recipe.private.wanted, Words()
    rates: dict[str, int] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        rates[name] = round(len(lines) / (time.perf_counter() - start))
        return result

    records = timed("read", lambda: [json.loads(line) for line in lines])
    timed("check", lambda: [convert.check(one, kind, "row:1") for one in records])
    clean = timed("clean", lambda: [cleaner.row(one)[0] for one in records])
    timed("mask", lambda: [everywhere(one, Masker(wanted).mask) for one in clean])
    hashed = timed("words", lambda: words.of(["\n".join(said(one, fields)) for one in clean]))
    timed("signatures", lambda: signatures(*hashed))
    return rates


def by_hand(folder: Path, phases: Phases) -> dict[str, Any]:
    """The same by a user's own script: datasets.map with a worker a core, datasketch for near duplicates."""
    import ftfy
    import phonenumbers
    from datasets import Dataset, load_dataset
    from datasketch import MinHash, MinHashLSH

    workers = os.cpu_count() or 1
    tag = re.compile(r"<[^<>]+>")
    word = re.compile(r"\w+")
    private = re.compile(
        r"[\w.+-]+@[\w-]+\.[\w.]+|\b[A-Z]{2}\d{2}[A-Z0-9]{11,30}\b|\b(?:\d[ -]?){13,19}\b|\b(?:\d{1,3}\.){3}\d{1,3}\b|"
        r"\b(?:sk|ghp|hf)[-_]\w{20,}"
    )

    def load() -> Dataset:
        return load_dataset(
            "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
        )

    def clean(row: dict[str, str]) -> dict[str, str]:
        return {
            name: re.sub(r"[ \t]+\n", "\n", tag.sub(" ", ftfy.fix_text(text))).strip() for name, text in row.items()
        }

    def masked(row: dict[str, str]) -> dict[str, str]:
        found = {}
        for name, text in row.items():
            text = private.sub("[PRIVATE]", text)
            for match in reversed(list(phonenumbers.PhoneNumberMatcher(text, None))):
                text = text[: match.start] + "[PHONE]" + text[match.end :]
            found[name] = text
        return found

    def exact(rows: Dataset) -> Dataset:
        seen: set[int] = set()
        kept = []
        for i, row in enumerate(rows):
            key = hash(" ".join((row["instruction"] + " " + row["output"]).lower().split()))
            if key not in seen:
                seen.add(key)
                kept.append(i)
        return rows.select(kept)

    def signed(row: dict[str, str]) -> dict[str, Any]:
        words = word.findall((row["instruction"] + " " + row["output"]).lower())
        sketch = MinHash(num_perm=128)
        sketch.update_batch([one.encode() for one in {*words, *map(" ".join, itertools.pairwise(words))}])
        return {"signature": sketch.hashvalues}

    def near(rows: Dataset) -> Dataset:
        index, scheme = MinHashLSH(threshold=0.65, num_perm=128), MinHash(num_perm=128).scheme
        kept = []
        for i, values in enumerate(rows.with_format("numpy")["signature"]):
            sketch = MinHash(num_perm=128, hashvalues=values, scheme=scheme)
            if not index.query(sketch):
                index.insert(i, sketch)
                kept.append(i)
        return rows.select(kept).remove_columns("signature")

    leaked: set[str] = set()
    for line in (folder / "eval.jsonl").read_text().splitlines():
        words = word.findall(json.loads(line)["question"].lower())
        leaked |= {" ".join(words[i : i + 13]) for i in range(len(words) - 12)}

    def is_fresh(row: dict[str, str]) -> bool:
        for text in row.values():
            words = word.findall(text.lower())
            if any(" ".join(words[i : i + 13]) in leaked for i in range(len(words) - 12)):
                return False
        return True

    def write(rows: Dataset) -> dict[str, int]:
        rest = rows.train_test_split(0.2, seed=42)
        held = rest["test"].train_test_split(0.5, seed=42)
        parts = {"train": rest["train"], "eval": held["train"], "test": held["test"]}
        for name, part in parts.items():
            part.to_json(folder / f"hand-{name}.jsonl", force_ascii=False)
        return {name: len(part) for name, part in parts.items()}

    run = phases.phase
    rows = run("read", load)
    rows = run("clean", lambda: rows.map(clean, num_proc=workers))
    rows = run("decontaminate", lambda: rows.filter(is_fresh, num_proc=workers))
    rows = run("exact and normalised duplicates", lambda: exact(rows))
    rows = run("signatures", lambda: rows.map(signed, num_proc=workers))
    rows = run("near duplicates", lambda: near(rows))
    rows = run("mask", lambda: rows.map(masked, num_proc=workers))
    return {"splits": run("split and write", lambda: write(rows))}


if __name__ == "__main__":
    main()
