"""Tokenized rows are found by content: a changed file is never served stale, whatever its name and time."""

import os

import pytest
from conftest import BASE, write_rows
from transformers import AutoTokenizer

from lorasmith.data.cache import SMALLEST, cache_folder, tokenize_cached
from lorasmith.data.formats import read_rows
from lorasmith.data.render import tokenize


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return AutoTokenizer.from_pretrained(BASE)


def some_rows(path, word: str = "lamp"):
    return read_rows(str(write_rows(path, *[{"question": f"q{i}", "answer": word} for i in range(SMALLEST)]))).rows


def test_the_second_time_comes_from_the_cache_and_is_the_same(tokenizer, tmp_path):
    rows = some_rows(tmp_path / "r.jsonl")
    first, cached = tokenize_cached(tokenizer, rows, "assistant")
    assert not cached
    second, cached = tokenize_cached(tokenizer, rows, "assistant")
    assert cached
    assert first == second == tokenize(tokenizer, rows, "assistant")


def test_other_content_at_the_same_time_and_size_is_not_served_stale(tokenizer, tmp_path):
    path = tmp_path / "r.jsonl"
    tokenize_cached(tokenizer, some_rows(path, "lamp"), "assistant")
    times = os.stat(path)
    rows = some_rows(path, "drum")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found, cached = tokenize_cached(tokenizer, rows, "assistant")
    assert not cached
    assert "drum" in tokenizer.decode(found[0].input_ids)


def test_the_same_content_under_another_name_is_found_with_its_own_places(tokenizer, tmp_path):
    tokenize_cached(tokenizer, some_rows(tmp_path / "a.jsonl"), "assistant")
    found, cached = tokenize_cached(tokenizer, some_rows(tmp_path / "b.jsonl"), "assistant")
    assert cached
    assert found[1].place == f"{tmp_path}/b.jsonl:2"


@pytest.mark.parametrize("change", ["template", "tokens", "train_on"])
def test_another_template_tokenizer_or_mask_is_another_entry(change, tokenizer, tmp_path):
    rows = some_rows(tmp_path / "r.jsonl")
    tokenize_cached(tokenizer, rows, "assistant")
    if change == "template":
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n", "assistant:\\n")
    if change == "tokens":
        tokenizer.add_tokens(["lam"])
    _, cached = tokenize_cached(tokenizer, rows, "all" if change == "train_on" else "assistant")
    assert not cached


def test_a_broken_entry_is_made_anew(tokenizer, tmp_path):
    rows = some_rows(tmp_path / "r.jsonl")
    first, _ = tokenize_cached(tokenizer, rows, "assistant")
    [entry] = cache_folder().iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    second, cached = tokenize_cached(tokenizer, rows, "assistant")
    assert not cached
    assert second == first
