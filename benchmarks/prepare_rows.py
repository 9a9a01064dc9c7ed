"""A file of made-up rows for `benchmarks/prepare.py`: as dirty, doubled, private and leaky as people's files are.

    python benchmarks/prepare_rows.py FOLDER --rows 1000000

Writes rows.jsonl (instruction, output), and eval.jsonl, an evaluation set that some of the rows give away. The same
arguments write the same bytes. What was planted is in planted.json, by kind.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np

SYLLABLES = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu ra re ri ro ru sa se si so su ta te ti to tu va ve vi vo zu sha tra pre con den ver ing ton lar mis".split()
VOCABULARY = 30_000
WORDS = 90  # of a row, on average
EVALUATION = 500  # rows
# Shares of the rows; each is made of a clean row before it.
SHARES = {
    "exact": 0.03,
    "case and space": 0.02,
    "near": 0.05,
    "mojibake": 0.02,
    "html": 0.01,
    "private": 0.02,
    "contaminated": 0.001,
}
BLOCK = 10_000


def vocabulary(seed: int) -> list[str]:
    """Words of one to four syllables, no two the same."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < VOCABULARY:
        found["".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2, 3, 3, 4))))] = None
    return list(found)


def write_rows(folder: Path, rows: int, seed: int = 7) -> Counter[str]:
    """Write both files and give the planted rows by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    words = np.array(vocabulary(seed))
    draw = np.random.default_rng(seed)
    weights = 1 / np.arange(10, len(words) + 10)  # Zipf's law, its head flattened
    weights /= weights.sum()
    asked = [sentence(draw, words, weights, 40) for _ in range(EVALUATION)]
    with (folder / "eval.jsonl").open("w") as file:
        file.writelines(json.dumps({"question": text, "answer": "yes"}) + "\n" for text in asked)
    planted: Counter[str] = Counter()
    choice = random.Random(seed)
    recent: list[dict[str, str]] = []
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            sizes = draw.poisson(WORDS, count) + 12
            drawn = words[draw.choice(len(words), int(sizes.sum()), p=weights)]
            at = 0
            for size in sizes.tolist():
                said = drawn[at : at + size]
                at += size
                kind = pick(choice) if len(recent) > 100 else ""
                row = made(kind, choice, recent, asked, said)
                planted[kind or "clean"] += 1
                if not kind:
                    recent.append(row)
                    if len(recent) > 5000:
                        recent[choice.randrange(4000)] = recent.pop()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    (folder / "planted.json").write_text(json.dumps(planted, indent=1) + "\n")
    return planted


def sentence(draw: np.random.Generator, words: np.ndarray, weights: np.ndarray, size: int) -> str:
    return " ".join(words[draw.choice(len(words), size, p=weights)])


def pick(choice: random.Random) -> str:
    """A kind of planted row, or nothing."""
    at = choice.random()
    for kind, share in SHARES.items():
        at -= share
        if at < 0:
            return kind
    return ""


def made(
    kind: str, choice: random.Random, recent: list[dict[str, str]], asked: list[str], said: np.ndarray
) -> dict[str, str]:
    """One row: a fresh one, or one of a kind made of a row before it."""
    cut = 8 + len(said) // 5
    row = {"instruction": prose(said[:cut]), "output": prose(said[cut:])}
    old = choice.choice(recent) if recent else row
    if kind == "exact":
        return dict(old)
    if kind == "case and space":
        return {"instruction": old["instruction"].upper(), "output": old["output"].replace(" ", "  ", 3)}
    if kind == "near":
        words = old["output"].split(" ")
        for i in choice.sample(range(len(words)), max(1, len(words) // 15)):
            words[i] = choice.choice(SYLLABLES) + "x"
        return {"instruction": old["instruction"], "output": " ".join(words)}
    if kind == "mojibake":
        row["output"] += (
            " It\u2019s a caf\u00e9 \u2014 na\u00efve, isn\u2019t it?".encode()
            .decode("cp1252", "replace")
            .replace("\ufffd", "")
        )
    elif kind == "html":
        row["output"] = row["output"].replace(". ", ".<br><br>", 2) + " &amp; more<p>"
    elif kind == "private":
        number = f"+44 20 7946 0{choice.randrange(100, 999)}"
        row["output"] += (
            f" Write to {choice.choice(SYLLABLES)}.{choice.choice(SYLLABLES)}{choice.randrange(999)}@example.org or call {number}."
        )
    elif kind == "contaminated":
        row["instruction"] = choice.choice(asked)
    return row


def prose(words: np.ndarray) -> str:
    """Words as sentences of about a dozen."""
    listed = words.tolist()
    sentences = [" ".join(listed[i : i + 12]) for i in range(0, len(listed), 12)]
    return ". ".join(one.capitalize() for one in sentences) + "."


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(dict(write_rows(arguments.folder, arguments.rows)))
