"""The proof of an export: the live adapter and the artefact answer the same rows, and what differs is measured."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lorasmith.console import track
from lorasmith.export.engines import Engine
from lorasmith.limits import Limits

IGNORED = -100
GREEDY_ROWS = 3  # shown side by side
GREEDY_TOKENS = 48
MOST_POSITIONS = 64  # of a row
KEPT_BYTES = 1 << 29  # of log-probabilities, on disk

Floats = npt.NDArray[np.float32]

# Rows that stand in where the run kept none of its own.
STAND_INS = (
    ("What is 2 + 2?", "4"),
    ("Name the colour of fresh snow.", "White."),
    ("Which is heavier, a kilogram of iron or a kilogram of feathers?", "They weigh the same."),
    ("Translate to French: Good morning.", "Bonjour."),
    ("List three fruits.", "Apple, banana, cherry."),
    ("Spell the word lamp backwards.", "pmal"),
    ("Is seven a prime number?", "Yes, seven is prime."),
    ("Finish the sentence: The sun rises in the", "east."),
)


@dataclass(frozen=True, slots=True)
class GoldenRow:
    """One row as the model sees it: ids and labels, IGNORED where nothing is trained."""

    ids: list[int]
    labels: list[int]

    @property
    def positions(self) -> list[int]:
        """Where the next token is a trained one, the first ones."""
        return [at - 1 for at in range(1, len(self.labels)) if self.labels[at] != IGNORED][:MOST_POSITIONS]

    @property
    def prompt(self) -> list[int]:
        """Everything before the first trained token."""
        first = next((at for at, label in enumerate(self.labels) if label != IGNORED), len(self.ids))
        return self.ids[: max(1, first)]


@dataclass(slots=True)
class Reference:
    """What the live adapter says on the golden rows."""

    rows: list[GoldenRow]
    log_probs: Floats  # (positions of all rows, vocabulary)
    answers: list[list[int]]
    engine: str
    folder: Any = None  # keeps the temporary file alive

    def of_row(self, number: int) -> Floats:
        """The log-probabilities at one row's positions."""
        start = sum(len(row.positions) for row in self.rows[:number])
        found: Floats = self.log_probs[start : start + len(self.rows[number].positions)]
        return found


@dataclass(slots=True)
class Drift:
    """How far an artefact is from the live adapter.

    Attributes:
        top1: Share of positions at which both put the same token first.
        kl_mean: Kullback-Leibler divergence from the live adapter, in nats a token; kl_max: at the worst position.
        loss_live: Mean negative log-likelihood of the trained tokens, in nats; and of the artefact.
        answers: Greedy answers to the first rows: (question, live, artefact), as text.
        template: Whether the artefact's tokenizer renders the golden conversations to the same ids; None: not asked.
    """

    kind: str
    engine: str
    rows: int
    positions: int
    top1: float
    kl_mean: float
    kl_max: float
    loss_live: float
    loss: float
    same_answers: int = 0
    answers: list[tuple[str, str, str]] = field(default_factory=list)
    template: bool | None = None
    tokens_per_second: float | None = None

    @property
    def loss_difference(self) -> float:
        """Rise of the loss, in nats a token."""
        return self.loss - self.loss_live

    @property
    def distance(self) -> float:
        """By which the closer of two is chosen."""
        return self.kl_mean

    @property
    def short(self) -> str:
        """The figures in a few words."""
        return f"KL {self.kl_mean:.5f} top-1 {self.top1:.3f}"

    @property
    def cause(self) -> str:
        """Where to look first, from how it drifted."""
        return likely_cause(self)

    def beyond(self, limits: Limits) -> list[str]:
        """What is past its limit, in words; nothing when the artefact is proven."""
        found = []
        if not self.top1 >= limits.top1:
            found.append(f"top-1 agreement {self.top1:.3f}, at least {limits.top1:g} is wanted")
        if not self.kl_mean <= limits.kl:
            found.append(f"mean KL {self.kl_mean:.4f}, at most {limits.kl:g} is wanted")
        if not self.loss_difference <= limits.loss:
            found.append(f"loss {self.loss:.4f} for {self.loss_live:.4f}, at most {limits.loss:g} more is wanted")
        if self.template is False:
            found.append("its chat template renders the golden conversations to other ids")
        return found

    def lines(self) -> list[str]:
        """The figures as sentences."""
        same = f", {self.same_answers} of {len(self.answers)} greedy answers the same" if self.answers else ""
        return [
            f"proof of {self.kind} by {self.engine}: {self.rows} rows, {self.positions} tokens: top-1 {self.top1:.3f}, "
            f"KL {self.kl_mean:.5f} (at most {self.kl_max:.4f}), loss {self.loss_live:.4f} live, {self.loss:.4f} here"
            f"{same}"
        ]

    def record(self) -> dict[str, Any]:
        """For proof.json and the card; the answers are of rows that may be private, and are left out."""
        record = asdict(self) | {"loss_difference": self.loss_difference}
        del record["answers"]
        return record


def reference(engine: Engine, rows: Sequence[GoldenRow]) -> Reference:
    """Ask the live adapter. Its log-probabilities lie in a temporary file, since a vocabulary is large.

    Raises:
        ValueError: If no row has a trained token.
    """
    first = engine.logits(rows[0].ids)
    most = max(1, KEPT_BYTES // (4 * first.shape[1]))
    chosen: list[GoldenRow] = []
    count = 0
    for row in rows:
        if row.positions and count + len(row.positions) <= max(most, MOST_POSITIONS):
            chosen.append(row)
            count += len(row.positions)
    if not chosen:
        raise ValueError("no golden row has a trained token")
    folder = tempfile.TemporaryDirectory()
    kept = np.memmap(Path(folder.name) / "log_probs", dtype=np.float32, mode="w+", shape=(count, first.shape[1]))
    at = 0
    for row in track(chosen, "rows answered by the live adapter"):
        found = log_softmax(engine.logits(row.ids)[row.positions])
        kept[at : at + len(found)] = found
        at += len(found)
    answers = [engine.greedy(row.prompt, GREEDY_TOKENS) for row in chosen[:GREEDY_ROWS]]
    return Reference(chosen, kept, answers, engine.name, folder)


def drift(kind: str, live: Reference, engine: Engine, decode: Any) -> Drift:
    """Compare an artefact with what the live adapter said.

    Args:
        decode: Token ids to text, for the answers side by side.
    """
    same = total = 0
    kl_sum = kl_max = nats_live = nats = 0.0
    for number, row in enumerate(track(live.rows, f"rows answered by {engine.name}")):
        ours, theirs = live.of_row(number), log_softmax(engine.logits(row.ids)[row.positions])
        size = min(ours.shape[1], theirs.shape[1])  # some engines pad the vocabulary, some drop the padding
        ours, theirs = ours[:, :size], theirs[:, :size]
        divergence = (np.exp(ours) * (ours - theirs)).sum(axis=1)
        targets = np.array([row.labels[at + 1] for at in row.positions])
        same += int((ours.argmax(axis=1) == theirs.argmax(axis=1)).sum())
        total += len(targets)
        kl_sum += float(divergence.sum())
        kl_max = max(kl_max, float(divergence.max()))
        nats_live -= float(ours[np.arange(len(targets)), targets].sum())
        nats -= float(theirs[np.arange(len(targets)), targets].sum())
    result = Drift(
        kind, engine.name, len(live.rows), total, same / total, kl_sum / total, kl_max, nats_live / total, nats / total
    )
    for row, answer in zip(live.rows, live.answers, strict=False):
        found = engine.greedy(row.prompt, GREEDY_TOKENS)
        result.same_answers += found == answer
        result.answers.append((decode(row.prompt), decode(answer), decode(found)))
    result.tokens_per_second = round(engine.tokens_per_second, 1) or None
    return result


def log_softmax(logits: Floats) -> Floats:
    """Along the last axis, shape kept."""
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def likely_cause(one: Drift) -> str:
    """Where to look first, from how it drifted."""
    if one.template is False:
        return "the tokenizer or template beside the artefact is another; restore what training wrote"
    if not math.isfinite(one.kl_mean):
        return "the artefact's logits are not finite; its precision is too small for this model"
    if one.top1 < 0.3:
        return "the weights are others: another base, a scale left out, or tensors in the wrong place"
    if "4" in one.kind:
        return (
            "what the adapter changed is smaller than the steps of 4 bit and was rounded away; deploy the base with "
            "the adapter beside it (gguf-lora, or peft), or take 8 bit"
        )
    return "the precision of the artefact is too small, or it stands on another base than training saw"


def side_by_side(one: Drift, width: int = 60) -> Iterator[str]:
    """Greedy answers, the live adapter's and the artefact's."""
    for question, live, found in one.answers:
        yield f"  asked   {json.dumps(question[-width:], ensure_ascii=False)}"
        yield f"  live    {json.dumps(live[:width], ensure_ascii=False)}"
        yield f"  {one.kind:7} {json.dumps(found[:width], ensure_ascii=False)}"
