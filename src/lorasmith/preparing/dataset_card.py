"""README.md of a prepared folder: what it is and how it was made, with the front matter that the hub reads."""

import re
import shlex
from pathlib import PurePath
from typing import Any

import yaml

from lorasmith.html_page import label
from lorasmith.preparing.counts import contaminated_rows, number_of, rows_read, rows_written, share, size
from lorasmith.preparing.summary import Part, Step, Summary

HUB_SPLITS = {"train": "train", "eval": "validation", "test": "test"}
SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
LEAST_LANGUAGE = 0.01  # share of the rows from which on a language is named
TEXTS = {"messages", "sharegpt", "prompt+completion", "instruction+output", "question+answer", "marked-text", "text"}
LISTED = 30  # lines of a table
RECIPE = "recipe.yaml"  # in the folder: every setting
LONGEST = 100  # characters of a name

SPLIT = {
    "hash": "Rows are split by a hash of what the model is asked: whatever is added later, no test row is trained on.",
    "group": "Rows are split by a hash of a column's value, whose rows stay together.",
    "time": "The newest rows test, those before them evaluate; the limits move as rows are added.",
}
_CARD = """\
# {name}

{rows:,} rows for fine-tuning, made by `scripts/prepare.py` from {sources}: {read:,} rows were read, {kept} of them
kept. Lengths are in {unit}.

## Splits

{splits}

{split}

## How it was made

{steps}

{again}

`report.html` shows where every row went, with examples of each change. Fingerprint of what was written:
`{fingerprint}`.
{sources_table}{masked}{languages}
## Train on it

```bash
accelerate launch scripts/sft.py RECIPE {overrides}
```

or, in a recipe:

```yaml
{section}```

## Limits

{limits}
"""


def card(summary: Summary) -> str:
    """README.md of the folder; the same text for the same summary. Paths of this machine are left out."""
    splits = [
        name for name in ("train", "eval") if name == "train" or (name in summary.splits and summary.splits[name].rows)
    ]
    section = {"data": {name: _path(summary, name) for name in splits}}
    counted = summary.tokenizer and f"tokens of {_text(summary.tokenizer)}"
    text = _CARD.format(
        name=_text(summary.name),
        rows=rows_written(summary),
        sources=number_of(len(summary.sources), "source"),
        read=rows_read(summary),
        kept=share(rows_written(summary), rows_read(summary)),
        unit=counted or "characters; no tokenizer was named",
        splits=_splits(summary),
        split=SPLIT[summary.settings.get("split", {}).get("by", "hash")],
        steps=_steps(summary.steps),
        again=_again(summary),
        fingerprint=_code(summary.fingerprint) or "none",
        sources_table=_sources(summary),
        masked=_masked(summary),
        languages=_languages(summary),
        overrides=" ".join(data_override(summary, name) for name in splits),
        section=yaml.safe_dump(section, sort_keys=False, allow_unicode=True, width=1000),
        limits="\n".join(f"- {one}" for one in _limits(summary)),
    )
    front = yaml.safe_dump(front_matter(summary), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{text}"


def front_matter(summary: Summary) -> dict[str, Any]:
    """What the hub reads of a data set: licence, languages, task, size and where the splits are."""
    files = [
        {"split": HUB_SPLITS.get(name, re.sub(r"\W+", "_", name)), "path": file_name(name, part)}
        for name, part in summary.splits.items()
        if part.rows  # the hub's reader fails on an empty file
    ]
    labelled = "text-classification" if any(summary.labels.values()) else ""
    task = "text-generation" if summary.format in TEXTS else labelled
    languages = _named_languages(summary)
    return {
        "license": label(summary.license, LONGEST),
        "pretty_name": label(summary.name, LONGEST),
        **({"language": languages} if languages else {}),
        **({"task_categories": [task]} if task else {}),
        "size_categories": [_size_category(rows_written(summary))],
        "tags": ["lorasmith"],
        **({"configs": [{"config_name": "default", "data_files": files}]} if files else {}),
    }


def file_name(split: str, part: Part | None) -> str:
    """The file of a split within the folder."""
    return label(part.file) if part and part.file else f"{_code(split)}.jsonl"


def data_override(summary: Summary, split: str, folder: str = "") -> str:
    """What makes sft.py take a split, as a word for the shell.

    Args:
        folder: Where the files are; nothing: where a user of the card has them.
    """
    name = file_name(split, summary.splits.get(split))
    return shlex.quote(f"data.{split}={f'{folder}/{name}' if folder else _path(summary, split)}")


def _named_languages(summary: Summary) -> list[str]:
    """ISO 639 codes of languages with a share worth naming, the commonest first."""
    whole = sum(summary.languages.values())
    ranked = sorted(summary.languages.items(), key=lambda one: (-one[1], one[0]))
    known = [(code, rows) for code, rows in ranked if re.fullmatch("[a-z]{2,3}", code) and code != "und"]
    return [code for code, rows in known if rows >= LEAST_LANGUAGE * whole]


def _size_category(rows: int) -> str:
    return next((name for name, below in SIZES if rows < below), "n>10M")


def _text(text: str) -> str:
    """Somebody's text as plain words in Markdown, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", label(text, LONGEST))


def _code(text: str) -> str:
    """Somebody's text between backticks, or in a code block."""
    return label(text, LONGEST).replace("`", "'").replace("|", "/")


def _path(summary: Summary, split: str) -> str:
    """A split's file as a user of the card may have it."""
    return f"{label(_shared(summary.folder or summary.name))}/{file_name(split, summary.splits.get(split))}"


def _shared(path: str) -> str:
    """A path as others may read it: one of this machine says nothing to them but its last name."""
    return path if not PurePath(path).is_absolute() else PurePath(path).name


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows[:LISTED]]
    rest = f"\n\nand {len(rows) - LISTED:,} more" if len(rows) > LISTED else ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + rest


def _splits(summary: Summary) -> str:
    tokens = ["tokens"] if summary.tokenizer else []
    rows = [
        [
            f"`{file_name(name, part)}`",
            _text(HUB_SPLITS.get(name, name)),
            f"{part.rows:,}",
            *([f"{part.tokens:,}"] if tokens else []),
            f"{part.characters:,}",
            size(part.bytes),
            f"`{_code(part.sha256[:16])}`",
        ]
        for name, part in summary.splits.items()
    ]
    return _table(["file", "split", "rows", *tokens, "characters", "size", "SHA-256 begins"], rows) if rows else "None."


def _steps(steps: list[Step]) -> str:
    rows = []
    for step in steps:
        ranked = sorted(step.removed.items(), key=lambda one: (-one[1], one[0]))
        why = "; ".join(f"{_text(reason)}: {count:,}" for reason, count in ranked[:LISTED] if count)
        note = _text(step.note) if step.note else ""
        told = "; ".join(one for one in (why, note) if one)
        rows.append([_text(step.name), f"{step.rows_in:,}", f"{step.changed:,}", f"{step.rows_out:,}", told])
    return (
        _table(["step", "rows in", "changed", "rows out", "removed, and how"], rows) if rows else "No step was taken."
    )


def _again(summary: Summary) -> str:
    named = shlex.quote(label(f"{_shared(summary.folder or summary.name)}/{RECIPE}"))
    return f"The same files give the same bytes again:\n\n```bash\npython scripts/prepare.py {named}\n```"


def _sources(summary: Summary) -> str:
    if not summary.sources:
        return ""
    rows = [
        [f"`{_code(_shared(s.path))}`", _text(s.format), f"{s.weight:g}", f"{s.rows:,}", f"{s.kept:,}"]
        for s in summary.sources
    ]
    return f"\n## Sources\n\n{_table(['file', 'format', 'weight', 'rows read', 'rows written'], rows)}\n"


def _masked(summary: Summary) -> str:
    rows = [
        [_text(kind), f"{counts.get('items', 0):,}", f"{counts.get('rows', 0):,}"]
        for kind, counts in sorted(summary.masked.items(), key=lambda one: (-one[1].get("items", 0), one[0]))
        if counts.get("items")
    ]
    return f"\n## Masked private data\n\n{_table(['kind', 'items', 'rows'], rows)}\n" if rows else ""


def _languages(summary: Summary) -> str:
    whole = sum(summary.languages.values())
    ranked = sorted(summary.languages.items(), key=lambda one: (-one[1], one[0]))
    rows = [[_text(code), f"{count:,}", share(count, whole)] for code, count in ranked]
    return f"\n## Languages\n\n{_table(['language', 'rows', 'share'], rows)}\n" if rows else ""


def _limits(summary: Summary) -> list[str]:
    """What a user of the rows must not take for granted."""
    licence = "Licences of the sources hold for what came of them."
    if summary.license == "unknown":
        licence = (
            "Its licence is not known: those of the sources hold for what came of them. Find out before sharing it."
        )
    private = "Private data was not looked for."
    if any(step.name == "mask" for step in summary.steps):
        private = "Private data was masked by its shape: names and what has no shape remain."
    overlap = "Overlap with evaluation data was not looked for."
    if any(step.name == "decontaminate" for step in summary.steps):
        removed = number_of(contaminated_rows(summary), "row")
        overlap = f"{removed} overlapping with named evaluation data were removed; other benchmarks were not looked at."
    guessed = ["Languages are guesses from the text."] if summary.languages else []
    return [licence, private, overlap, *guessed, "What the rows say was not checked."]
