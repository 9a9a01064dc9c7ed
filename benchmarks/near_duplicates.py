"""Which library finds near duplicates: datasketch, rensa alone, or rensa with sorted bands.

    pip install datasketch
    python benchmarks/near_duplicates.py [--rows 50000]   # writes benchmarks/near_duplicates.json; about three minutes

The rows are made up (prepare_rows.py): one in twenty is an earlier one with a word in fifteen changed, and a few are
the same. Each way gets the same words and pairs of words, in one process of one thread, and tells which rows are near
an earlier one; the threshold is that of prepare.py. Found and wrong are counted against what was planted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

WAYS = ("datasketch", "rensa deduplicator", "rensa signatures, sorted bands")
THRESHOLD = 0.65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measured(arguments.only, arguments.file)))
        return
    report: dict[str, Any] = {"rows": arguments.rows, "threshold": THRESHOLD}
    with tempfile.TemporaryDirectory() as folder:
        from prepare_rows import write_rows

        write_rows(Path(folder), arguments.rows)
        for way in WAYS:
            words = [sys.executable, __file__, "--only", way, "--file", f"{folder}/rows.jsonl"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
            report[way] = json.loads(done.stdout.splitlines()[-1])
            print(way, report[way], flush=True)
    (Path(__file__).parent / "near_duplicates.json").write_text(json.dumps(report, indent=1) + "\n")


def table(report: dict[str, Any]) -> str:
    """The ways side by side, in Markdown."""
    lines = ["| | rows/s, one thread | bytes a row | found | wrong |", "|---|---|---|---|---|"]
    for way in WAYS:
        one = report[way]
        found = f"{one['found']:,} of {one['planted']:,}"
        lines.append(f"| {way} | {one['rows_per_second']:,} | {one['bytes_a_row']:,} | {found} | {one['wrong']} |")
    return "\n".join(lines)


def measured(way: str, path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.open()]
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows]
    # A planted row shares its instruction with an earlier one; a clean one with none.
    seen: set[str] = set()
    planted = []
    for row in rows:
        planted.append(row["instruction"].casefold() in seen)
        seen.add(row["instruction"].casefold())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    flags = {WAYS[0]: by_datasketch, WAYS[1]: by_rensa, WAYS[2]: by_bands}[way](texts)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "rows_per_second": round(len(texts) / seconds),
        "bytes_a_row": round((peak - before) * 1024 / len(texts)),
        "planted": sum(planted),
        "found": sum(a and b for a, b in zip(planted, flags, strict=True)),
        "wrong": sum(b and not a for a, b in zip(planted, flags, strict=True)),
    }


def grams(text: str) -> set[str]:
    from lorasmith.preparing.words import WORD

    words = WORD.findall(text.casefold())
    return {*words, *map(" ".join, pairwise(words))}


def by_datasketch(texts: list[str]) -> list[bool]:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold=THRESHOLD, num_perm=128)
    sketches: list[Any] = []
    found = []
    for i, text in enumerate(texts):
        sketch = MinHash(num_perm=128)
        sketch.update_batch([one.encode() for one in grams(text)])
        found.append(any(sketch.jaccard(sketches[j]) >= THRESHOLD for j in index.query(sketch)))
        index.insert(i, sketch)
        sketches.append(sketch)
    return found


def by_rensa(texts: list[str]) -> list[bool]:
    from rensa import RMinHashDeduplicator

    index = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=128, use_lsh=True)
    return [not kept for kept in index.add_pairs((str(i), list(grams(text))) for i, text in enumerate(texts))]


def by_bands(texts: list[str]) -> list[bool]:
    import numpy as np

    from lorasmith.preparing.similar import Groups, near_pairs
    from lorasmith.preparing.words import Words, signatures, similarity

    words, parts = Words(), []
    for start in range(0, len(texts), 2000):
        parts.append(signatures(*words.of(texts[start : start + 2000])))

    def exact(first: int, second: int) -> float:
        hashes, starts = words.of([texts[first], texts[second]])
        return similarity(hashes[: starts[1]], hashes[starts[1] :])

    groups = Groups(len(texts))
    for first, second in near_pairs(np.concatenate(parts), np.arange(len(texts)), THRESHOLD, exact):
        groups.join(first, second)
    return (groups.all() != np.arange(len(texts))).tolist()


if __name__ == "__main__":
    main()
