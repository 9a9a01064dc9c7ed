"""The quickstart's task is composed, not looked up: held-out pairs stand nowhere else, in the whole text."""

import itertools
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "quickstart"))
import text as quickstart

DOCUMENTS = 400_000  # as many as pretrain.py draws at most


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / f"quickstart/data/{name}.jsonl").read_text().splitlines()]


def told(messages: list[dict]) -> str:
    return "\n".join(message["content"] for message in messages)


def test_the_rows_on_disk_are_the_generators():
    assert rows("train") == quickstart.task_rows(480, quickstart.SEEN_PAIRS, 1)
    assert rows("heldout") == quickstart.task_rows(100, quickstart.HELDOUT_PAIRS, 2)


def test_held_out_and_seen_pairs_share_parts_but_no_pair():
    held, seen = set(quickstart.HELDOUT_PAIRS), set(quickstart.SEEN_PAIRS)
    assert not held & seen
    assert {colour for colour, _ in held} <= {colour for colour, _ in seen}
    assert {item for _, item in held} <= {item for _, item in seen}


def test_no_held_out_pair_stands_in_the_training_rows():
    training = "\n".join(told(row["messages"]) for row in rows("train"))
    for row in rows("heldout"):
        record = json.loads(row["messages"][1]["content"])
        assert f"{record['colour']} {record['item']}" not in training
        assert f'"item": "{record["item"]}", "colour": "{record["colour"]}"' not in training
        assert row["messages"][0]["content"] not in training
        assert row["messages"][1]["content"] not in training


def test_pretraining_draws_no_more_documents_than_are_checked():
    program = (ROOT / "quickstart/pretrain.py").read_text()
    assert f"DOCUMENTS = {DOCUMENTS:_}" in program
    assert "documents(DOCUMENTS, SEED)" in program


def test_no_held_out_pair_prompt_or_answer_stands_in_the_bases_text():
    pairs = {f"{colour} {item}" for colour, item in quickstart.HELDOUT_PAIRS}
    labels = {f'"item": "{item}", "colour": "{colour}"' for colour, item in quickstart.HELDOUT_PAIRS}
    whole = {row["messages"][i]["content"] for row in rows("heldout") for i in (0, 1)}
    seen_pairs = 0
    items = {item for _, item in quickstart.PAIRS}
    for document in quickstart.documents(DOCUMENTS, 0):
        for said in [document] if isinstance(document, str) else [message["content"] for message in document]:
            assert said not in whole
            words = said.replace(",", " ").replace(".", " ").replace('"', " ").split()
            for first, second in itertools.pairwise(words):
                item = second if second in items else second.removesuffix("s")
                if item in items and first in quickstart.COLOURS:
                    seen_pairs += 1
                    assert f"{first} {item}" not in pairs, said
            if '"item"' in said:
                assert not any(label in said for label in labels), said
    assert seen_pairs > 100_000, "the check must see pairs to mean anything"


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_rows_are_distinct_and_answers_are_json(name):
    found = rows(name)
    assert len({told(row["messages"]) for row in found}) == len(found)
    for row in found:
        assert set(json.loads(row["messages"][1]["content"])) == {"name", "city", "item", "colour", "count", "day"}


def test_the_base_is_small():
    from safetensors import safe_open

    path = Path(ROOT / "quickstart/base/model.safetensors")
    assert path.stat().st_size <= 10 * 2**20
    with safe_open(path, "pt") as file:
        count = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert count <= 5_000_000
