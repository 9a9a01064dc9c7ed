"""What merge.py does for a reward model: the live adapter's scores of held-out pairs, and those of its merge."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.mask import keeps_contract
from lorasmith.data.rows import Row, conversation
from lorasmith.data.scored import Scored, pairs_to_score
from lorasmith.errors import LorasmithError, ModelError
from lorasmith.export import tensors
from lorasmith.export.proof import STAND_INS
from lorasmith.export.score_proof import ScoreDrift, ScoreReference, score_drift
from lorasmith.hardware import find_hardware
from lorasmith.limits import ROWS, SCORE_LIMITS, ScoreLimits
from lorasmith.runs import proving
from lorasmith.runs.merging import BATCH, Source, pad_of
from lorasmith.runs.opening import gives_scores, open_scorer
from lorasmith.runs.scoring import score_all


def is_scorer(names: list[str], weights: list[float], fares: bool) -> bool:
    """Whether a reward model's adapter is to be merged.

    Raises:
        ModelError: If it is one of several, weighted, or to be compared on its rows.
    """
    scorer = next((name for name in names if gives_scores(name)), None)
    if scorer is not None and (len(names) > 1 or weights != [1.0] or fares):
        raise ModelError(
            f"{scorer}: a reward model is merged alone, without --weights and --eval, since its head is whole."
        )
    return scorer is not None


def limits_for(given: list[str]) -> ScoreLimits:
    """The project's limits under those of the command line.

    Raises:
        LorasmithError: If a name or value is none.
    """
    found = SCORE_LIMITS
    for text in given:
        name, _, value = text.partition("=")
        try:
            if name not in ScoreLimits.__dataclass_fields__:
                raise ValueError
            found = replace(found, **{name: float(value)})
        except ValueError:
            known = ", ".join(ScoreLimits.__dataclass_fields__)
            raise LorasmithError(f"--limit {text}: expected NAME=NUMBER, for a reward model one of {known}.") from None
    return found


def ask(source: Source, name: str, base: str | None, trust_remote_code: bool) -> None:
    """Let the live adapter score the golden pairs, in the precision it was trained in, and let it go again."""
    proving.check_memory(tensors.Weights(Path(source.base["folder"])).size)
    opened = open_scorer(name, base, None, trust_remote_code)
    pairs, said = golden_pairs(Path(name), opened.tokenizer)
    say(f"golden pairs: {said}")
    rows = [(one.sequences["chosen"], one.sequences["rejected"]) for one in pairs]
    source.live = ScoreReference(rows, _scores(opened.model, rows, opened.tokenizer))
    del opened
    gc.collect()


def golden_pairs(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Scored], str]:
    """The pairs that exports of a reward model are proven on, and where they come from.

    Raises:
        RunError: If the run's own rows cannot be read.
    """
    rows = proving.kept_rows(folder, ROWS)
    if len(rows) > 1:
        pairs = pairs_to_score(tokenizer, rows)
        return pairs, f"{len(pairs)} pairs of its own evaluation"
    asked = [[{"role": "user", "content": question}] for question, _ in STAND_INS]
    answers = [{"role": "assistant", "content": answer} for _, answer in STAND_INS]
    made = [
        conversation(f"made up {n}", [*asked[n], answer])
        if tokenizer.chat_template
        else Row(f"made up {n}", prompt=f"{STAND_INS[n][0]}\n", completion=answer["content"])
        for n in range(len(asked))
        for answer in (answers[n], answers[n - 1])
    ]
    return pairs_to_score(tokenizer, made), f"{len(asked)} made-up pairs, since the run kept none"


def measure(source: Source, folder: Path) -> ScoreDrift:
    """A merged reward model against the live adapter, loaded as a stranger would load it; said."""
    assert isinstance(source.live, ScoreReference)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device: Any = {"": find_hardware().device}
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", device_map=device)
    found = score_drift("merged", source.live, _scores(model, source.live.rows, tokenizer))
    found.template = keeps_contract(tokenizer, source.contract, "merged")
    for line in found.lines():
        say(line)
    del model
    gc.collect()
    return found


def _scores(
    model: Any, rows: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[float, float]]:
    pairs = [Scored("", {"chosen": chosen, "rejected": rejected}) for chosen, rejected in rows]
    found = score_all(model, pairs, pad_of(tokenizer), BATCH)
    return [(one.scores["chosen"], one.scores["rejected"]) for one in found]
