"""eval.py: base and adapter from one model, with an interval that means what it says."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import BASE, launch, write_rows

from lorasmith.evaluation.compare import loss_difference, match_difference, perplexity
from lorasmith.evaluation.scores import RowLoss, greedy_answers, row_losses
from lorasmith.models import load_base_model, load_tokenizer
from lorasmith.recipe import Model

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def base():
    return load_base_model(Model(name=BASE), "float32", "sdpa", "cpu")


def some_rows(count: int = 7) -> list[tuple[list[int], list[int]]]:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(count):
        ids = [int(i) for i in rng.integers(3, 900, int(rng.integers(4, 40)))]
        start = int(rng.integers(1, len(ids)))
        rows.append((ids, [-100] * start + ids[start:]))
    return rows


def test_row_losses_are_those_of_the_full_logits_in_float64(base):
    rows = some_rows()
    found = row_losses(base, rows, pad_id=0, batch=3)
    for (ids, labels), loss in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = base(torch.tensor([ids])).logits[0, :-1].double()
        targets = torch.tensor(labels[1:])
        nats = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
        assert loss.tokens == int((targets != -100).sum())
        assert loss.nats == pytest.approx(nats, rel=1e-4)


def test_batches_change_neither_losses_nor_answers(base):
    tokenizer, _ = load_tokenizer(Model(name=BASE))
    rows = some_rows()
    one, many = (row_losses(base, rows, 0, batch) for batch in (1, 7))
    assert [row.nats for row in one] == pytest.approx([row.nats for row in many], rel=1e-4)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for text in ("Repeat: Oslo lamp", "Hello!", "How do you spell 7?")
    ]
    alone = [greedy_answers(base, tokenizer, [prompt], 12, 1)[0] for prompt in prompts]
    assert greedy_answers(base, tokenizer, prompts, 12, 3) == alone
    assert alone[0] == "Oslo lamp"


def test_the_loss_is_a_mean_over_tokens_and_perplexity_its_exponential():
    base = [RowLoss(10.0, 5), RowLoss(2.0, 1)]
    adapter = [RowLoss(5.0, 5), RowLoss(1.0, 1)]
    found = loss_difference(base, adapter)
    assert (found.base, found.other, found.delta) == (2.0, 1.0, -1.0)
    assert perplexity(2.0) == pytest.approx(math.e**2)
    assert perplexity(1e9) == math.inf


def test_the_interval_covers_the_truth_about_95_times_in_a_hundred():
    """Simulated pairs with a known mean difference of 0.3."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        gains = rng.normal(0.3, 1.0, 60)
        found = loss_difference([RowLoss(0.0, 1)] * 60, [RowLoss(float(gain), 1) for gain in gains])
        covered += found.low <= 0.3 <= found.high
    assert 88 <= covered <= 100


def test_verdicts_follow_the_interval():
    same = match_difference([True, False] * 20, [False, True] * 20)
    assert same.verdict == "cannot tell"
    assert match_difference([False] * 40, [True] * 40).verdict == "better"
    assert match_difference([True] * 40, [False] * 40).verdict == "worse"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    done = launch("scripts/eval.py", folder, "--data", "quickstart/data/heldout.jsonl", "--limit", 12)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_table_names_both_and_ends_in_a_verdict(evaluated):
    folder, out = evaluated
    assert "base    adapter  difference (95 % interval)" in out
    assert "the adapter against its base on 12 rows: loss: better" in out
    assert f"next: python scripts/chat.py {folder}" in out


def test_the_base_is_the_adapter_switched_off(evaluated, base):
    """nf4 on both sides; the base's loss is that of the base loaded alone."""
    from lorasmith.data.formats import read_rows
    from lorasmith.data.render import tokenize

    folder, _ = evaluated
    run = json.loads((folder / "run.json").read_text())
    tokenizer, _ = load_tokenizer(Model(name=BASE))
    rows, _, _ = read_rows("quickstart/data/heldout.jsonl")
    alone = load_base_model(Model(name=BASE, quantization="nf4"), run["recipe"]["model"]["dtype"], "sdpa", "cpu")
    pairs = [(row.input_ids, row.labels) for row in tokenize(tokenizer, rows[:12], "assistant")]
    losses = row_losses(alone, pairs, 0, 16)
    expected = sum(row.nats for row in losses) / sum(row.tokens for row in losses)
    assert run["evaluations"][0]["scores"]["loss"]["base"] == pytest.approx(expected, rel=1e-5)


def test_the_evaluation_stands_in_run_json_and_on_the_card_once(evaluated):
    folder, _ = evaluated
    again = launch("scripts/eval.py", folder, "--data", "quickstart/data/heldout.jsonl", "--limit", 12)
    assert again.returncode == 0, again.stderr
    run = json.loads((folder / "run.json").read_text())
    assert len(run["evaluations"]) == 1
    assert run["evaluations"][0]["rows"] == 12
    assert (folder / "README.md").read_text().count("| 12 of heldout.jsonl | exact match |") == 1
    assert (folder / "README.md").read_text().count("| general texts that come with Lorasmith | general loss |") == 1


def test_what_is_neither_adapter_nor_model_is_refused():
    done = launch("scripts/eval.py", "recipes", "--data", "quickstart/data/heldout.jsonl")
    assert done.returncode == 2
    assert (
        done.stderr == "error: recipes: neither an adapter (adapter_config.json) nor a model (config.json) is here.\n"
    )


def test_a_base_that_moved_is_asked_for(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/base/model"}))
    rows = write_rows(tmp_path / "r.jsonl", {"question": "Hello!", "answer": "Hello!"})
    done = launch("scripts/eval.py", folder, "--data", rows)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder}: its base /gone/base/model is not here. Say where it is with --base.\n"
    done = launch("scripts/eval.py", folder, "--data", rows, "--base", BASE)
    assert done.returncode == 0, done.stderr
