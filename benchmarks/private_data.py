"""How much private data is found, how much is taken for it wrongly, and how fast: lorasmith's masking and presidio's patterns.

    python benchmarks/private_data.py ../shared/data/pii_presidio_synth.jsonl --clean ../shared/data/sft_alpaca_en.jsonl \\
        ../shared/data/math_gsm8k_train.jsonl ../shared/data/text_c4_demo.jsonl    # writes private_data.json; a minute

A labelled span is found if a span of the kind that stands for its type overlaps at least half of its characters; what is
found is right by the same rule; strict says that both are the same. The patterns were made by looking at rows 0 to 749 only; the others are the held-out half. --presidio compares with the pattern recognizers
of presidio-analyzer (no model, no context words), if it is installed.
"""

import argparse
import json
import logging
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lorasmith.preparing.private import DEFAULT_KINDS, KINDS, Masker, find

DEVELOPED_ON = 750  # rows
STRUCTURED = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "IBAN_CODE": "iban",
    "CREDIT_CARD": "card",
    "IP_ADDRESS": "ip",
    "US_SSN": "national_id",
}
OTHERS = {
    "US_DRIVER_LICENSE": "national_id",
    "DOMAIN_NAME": "link",
    "STREET_ADDRESS": "address",
    "PERSON": "name",
    "ZIP_CODE": None,  # no kind of ours
}
OPT_IN = frozenset({"name", "address"})
SAME_KIND = {"US_SSN", "US_DRIVER_LICENSE"}  # a find for one of them is no false find for the other
Span = tuple[str, int, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="rows that should hold next to none")
    parser.add_argument("--presidio", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "private_data.json")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.file.open(encoding="utf-8")]
    report: dict = {"machine": f"{platform.machine()}, {os.cpu_count()} threads", "labels": checksums(rows)}
    halves = {"developed_on": rows[:DEVELOPED_ON], "held_out": rows[DEVELOPED_ON:], "all": rows}
    report["ours"] = {name: scored(part, ours) for name, part in halves.items()}
    if arguments.presidio:
        theirs = presidio()
        report["presidio"] = {
            f"{name}, score of {least} or more": scored(part, lambda text, least=least: theirs(text, least))
            for name, part in halves.items()
            for least in (0.0, 0.4)
        }
        found_by = {"ours": ours, "presidio": lambda text: theirs(text, 0.0)}
        report["labelled_rows_a_second"] = {name: speed(rows, finder) for name, finder in found_by.items()}
    report["clean"] = {path.name: false_finds(path) for path in arguments.clean}
    arguments.out.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    show(report)


def ours(text: str) -> list[Span]:
    found = find(text, frozenset(KINDS))
    return [(one.kind, one.start, one.end) for one in found]


def speed(rows: list[dict], finder: Callable[[str], list[Span]]) -> int:
    """Rows a second on one core, the second time through."""
    for row in rows:
        finder(row["full_text"])
    start = time.perf_counter()
    for row in rows:
        finder(row["full_text"])
    return round(len(rows) / (time.perf_counter() - start))


def overlaps(found: Span, label: Span) -> bool:
    """Whether what was found covers at least half of a labelled span."""
    return 2 * (min(found[2], label[2]) - max(found[1], label[1])) >= label[2] - label[1]


def scored(rows: list[dict], finder: Callable[[str], list[Span]]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 by type, by the rule above and strictly, and over all structured types."""
    counts = {kind: Counter() for kind in (*STRUCTURED, *OTHERS)}
    for row in rows:
        text, found = row["full_text"], finder(row["full_text"])
        labels = [(span["entity_type"], span["start_position"], span["end_position"]) for span in row["spans"]]
        for kind, count in counts.items():
            count_row(kind, count, labels, found)
        assert all(text[start:end] for _, start, end in labels)
    whole = sum((counts[kind] for kind in STRUCTURED), Counter())
    return {kind: rates(count) for kind, count in counts.items()} | {"structured": rates(whole)}


def count_row(kind: str, count: Counter, labels: list[Span], found: list[Span]) -> None:
    stands_for = (STRUCTURED | OTHERS)[kind]
    wanted = [one for one in labels if one[0] == kind]
    also = [one for one in labels if one[0] in SAME_KIND - {kind}] if kind in SAME_KIND else []
    given = [one for one in found if one[0] == stands_for and not any(overlaps(one, other) for other in also)]
    count["labelled"] += len(wanted)
    count["given"] += len(given)
    count["hit"] += sum(any(overlaps(other, one) for other in given) for one in wanted)
    count["right"] += sum(any(overlaps(one, other) for other in wanted) for one in given)
    count["same"] += sum(any(one[1:] == other[1:] for other in given) for one in wanted)


def rates(count: Counter) -> dict[str, float]:
    precision = count["right"] / count["given"] if count["given"] else 0.0
    recall = count["hit"] / count["labelled"] if count["labelled"] else 0.0
    total = count["given"] + count["labelled"]
    return {
        "labelled": count["labelled"],
        "found": count["given"],
        "precision": round(precision, 3),
        "recall": round(recall, 3),
        "f1": round(2 * precision * recall / (precision + recall), 3) if precision + recall else 0.0,
        "f1_strict": round(2 * count["same"] / total, 3) if total else 0.0,
    }


def checksums(rows: list[dict]) -> dict[str, int]:
    """How many labelled cards and account numbers hold their own checksum."""
    from lorasmith.preparing.private_checksums import luhn, mod97

    values = [(span["entity_type"], span["entity_value"]) for row in rows for span in row["spans"]]
    cards = ["".join(filter(str.isdigit, value)) for kind, value in values if kind == "CREDIT_CARD"]
    ibans = ["".join(filter(str.isalnum, value)).upper() for kind, value in values if kind == "IBAN_CODE"]
    return {
        "cards": len(cards),
        "cards_with_checksum": sum(map(luhn, cards)),
        "ibans": len(ibans),
        "ibans_with_checksum": sum(map(mod97, ibans)),
    }


def presidio() -> Callable[[str, float], list[Span]]:
    """presidio's recognizers of the structured types, each by itself, as its analyzer calls them without a model."""
    from presidio_analyzer.predefined_recognizers import (
        CreditCardRecognizer,
        EmailRecognizer,
        IbanRecognizer,
        IpRecognizer,
        PhoneRecognizer,
        UrlRecognizer,
        UsLicenseRecognizer,
        UsSsnRecognizer,
    )

    logging.getLogger("tldextract").setLevel(logging.CRITICAL)  # its e-mail recognizer asks the network for a list
    kinds = STRUCTURED | OTHERS | {"URL": "link"}
    recognizers = [EmailRecognizer(), PhoneRecognizer(), IbanRecognizer(), CreditCardRecognizer(), IpRecognizer()]
    recognizers += [UsSsnRecognizer(), UsLicenseRecognizer(), UrlRecognizer()]

    def finder(text: str, least: float) -> list[Span]:
        found = [one for each in recognizers for one in each.analyze(text, each.supported_entities, None) or []]
        spans = {(str(kinds[one.entity_type]), one.start, one.end) for one in found if one.score >= least}
        return sorted(spans)

    return finder


def texts(path: Path) -> list[str]:
    """Each row of a file as one text."""
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return ["\n".join(str(value) for value in row.values()) for row in rows]


def false_finds(path: Path) -> dict:
    """What is masked in rows without labels, and how many rows a second one core masks."""
    held = texts(path)
    for text in held:
        Masker(DEFAULT_KINDS).mask(text)  # patterns are compiled and libraries read
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        for text in held:
            Masker(DEFAULT_KINDS).mask(text)
        seconds.append(time.perf_counter() - start)
    found = [one.kind for text in held for one in find(text, DEFAULT_KINDS)]
    return {
        "rows": len(held),
        "characters_a_row": round(sum(map(len, held)) / len(held)),
        "rows_a_second": round(len(held) / min(seconds)),
        "found_per_1000_rows": round(1000 * len(found) / len(held), 1),
        "found": dict(sorted(Counter(found).items())),
        "opt_in_found": dict(sorted(Counter(one.kind for text in held for one in find(text, OPT_IN)).items())),
    }


def show(report: dict) -> None:
    tables = {f"ours, {name}": part for name, part in report["ours"].items()}
    tables |= {f"presidio, {name}": part for name, part in report.get("presidio", {}).items()}
    for name, table in tables.items():
        print(f"\n{name:<42}{'labelled':>9}{'found':>7}{'prec.':>7}{'recall':>7}{'F1':>7}{'strict':>7}")
        for kind, one in table.items():
            print(f"{kind:<42}" + "".join(f"{value:>{9 if key == 'labelled' else 7}}" for key, value in one.items()))
    print()
    print(report["labels"], report.get("labelled_rows_a_second", ""))
    for name, one in report["clean"].items():
        print(name, one)


if __name__ == "__main__":
    main()
