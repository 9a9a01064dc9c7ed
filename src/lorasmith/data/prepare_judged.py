"""From the recipe's `data:` to audited answers, each with a verdict."""

from dataclasses import dataclass, field

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorasmith.console import say
from lorasmith.data.audit import SHOWN_ROWS, account_lines, fingerprint
from lorasmith.data.judged_tokens import JudgedTokens, balance_line, tokenize_judged
from lorasmith.data.mask import check_masks
from lorasmith.data.pair_tokens import answered, sequence
from lorasmith.data.pairs import Judged, read_judged
from lorasmith.data.prepare import Prepared, show, uncollected
from lorasmith.data.prepare_pairs import read_and_divide
from lorasmith.recipe import Data


@dataclass(slots=True)
class PreparedJudged(Prepared):
    """What a run on judged answers trains and evaluates on; `eval_rows` are prompts with the wanted answers."""

    train_judged: list[JudgedTokens] = field(default_factory=list)
    eval_judged: list[JudgedTokens] = field(default_factory=list)


@uncollected()
def read_train_and_eval_judged(section: Data, seed: int) -> tuple[list[Judged], list[Judged], list[str]]:
    """All judged answers of the recipe, split, weighted and free of overlap, and the refusals of dropped ones.

    Raises:
        DataError: At the first broken row, unless the recipe drops them.
    """
    return read_and_divide(section, seed, read_judged, "kto", "judged answers are known by their `label`")


@uncollected()
def prepare_judged(
    section: Data,
    tokenizer: PreTrainedTokenizerBase,
    train: list[Judged],
    held_out: list[Judged],
    rejected: list[str],
    max_length: int | None,
) -> PreparedJudged:
    """Tokenize, cut to length, account for every row, and show some as the model sees them.

    Raises:
        DataError: If rows cannot be trained on as asked, or all verdicts are the same.
    """
    prepared = PreparedJudged([], [], [], rejected=list(rejected))
    for name, rows in (("train", train), ("eval", held_out)):
        if not rows:
            continue
        refused: list[str] = []
        kept = refused if section.on_bad_row == "drop" else None
        tokens, account = tokenize_judged(tokenizer, rows, max_length, section.on_too_long, kept)
        account.rows_of(len(rows), refused)
        prepared.rejected += refused
        prepared.accounts[name] = account
        for line in account_lines(account):
            say(line if name == "train" else f"evaluation {line}")
        places = {row.place for row in tokens}
        usable = [row for row in rows if row.place in places]
        sequences = [sequence(row.place, row.prompt, row.completion) for row in tokens]
        if name == "train":
            say(balance_line(tokens))
            prepared.mask_check = check_masks(tokenizer, [answered(row, row.completion) for row in usable])
            prepared.train, prepared.train_judged = sequences, tokens
        else:
            prepared.eval, prepared.eval_judged = sequences, tokens
            prepared.eval_rows = [answered(row, row.completion) for row in usable if row.label]
    prepared.fingerprint = fingerprint(prepared.train + prepared.eval)
    if prepared.mask_check:
        say(prepared.mask_check)
    show(tokenizer, prepared.train[:SHOWN_ROWS])
    return prepared


def judged_as_dataset(rows: list[JudgedTokens], batch: int) -> Dataset:
    """Judged answers as the data set that trl's collator takes.

    `KL_completion_ids` are the answers of a micro-batch, each behind the prompt of the row behind its own, from which
    trl estimates how far the policy is from its reference; so the rows are trained in this order.

    Args:
        batch: Rows of a micro-batch.
    """
    answers = [row.completion.tolist() for row in rows]
    turned = [
        answer
        for start in range(0, len(answers), batch)
        for answer in [*answers[start : start + batch][-1:], *answers[start : start + batch][:-1]]
    ]
    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt.tolist() for row in rows],
            "completion_ids": answers,
            "KL_completion_ids": turned,
            "label": [row.label for row in rows],
            "input_ids": [(row.prompt + row.completion).tolist() for row in rows],
        }
    )
