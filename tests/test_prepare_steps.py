"""The steps of a preparation one by one, against brute force and by hand."""

import itertools
import json
import random
import re

import numpy as np
import pytest
from conftest import SHARED, needs_shared

from lorasmith.preparation import Cleaning, Splitting
from lorasmith.preparing import split
from lorasmith.preparing.clean import Cleaner, excerpts, language, normalised
from lorasmith.preparing.contamination import evaluations, met
from lorasmith.preparing.similar import Groups, near_pairs
from lorasmith.preparing.texts import everywhere, rewritten, said
from lorasmith.preparing.words import Words, content_hash, grams_of_words, signatures, similarity


def cleaned(text, field="text", kind="text", **settings):
    cleaner = Cleaner(Cleaning(**settings), kind, frozenset({"text", "prompt", "completion", "messages", "output"}))
    record, changes = cleaner.row({field: text})
    return record[field], set(changes)


MENDED = {
    "mojibake": ("It\u00e2\u20ac\u2122s a caf\u00c3\u00a9.", "It\u2019s a caf\u00e9.", {"unicode"}),
    "an accent apart": ("cafe\u0301", "caf\u00e9", {"unicode"}),
    "a mark of byte order": ("\ufeffHello", "Hello", {"control"}),
    "bells and colours": ("a\x07b \x1b[31mred\x1b[0m", "ab red", {"control"}),
    "tags of a page": ("One.<br><br>Two <b>three</b>", "One.\n\nTwo three", {"html"}),
    "entities": ("AT&amp;T isn&#39;t", "AT&T isn't", {"html"}),
    "line ends": ("a\r\nb\rc", "a\nb\nc", {"whitespace"}),
    "blank ends and lines": ("  a\n\n\n \n\n\nb \n", "a\n\n\nb", {"whitespace"}),
    "lines of every page": (
        "Skip to content\nA story.\nIt went on.\nAll rights reserved.",
        "A story.\nIt went on.",
        {"boilerplate"},
    ),
}
SOUND = {
    "quotes and dashes": "\u201cCurly\u201d \u2018quotes\u2019 \u2014 and \u2026 dots",
    "wide letters": "\uff26\uff35\uff2c\uff2c \u30ab\u30bf\u30ab\u30ca",
    "ligatures": "e\ufb03cient",
    "a family of emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "Persian with joiners": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Thai": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u200b\u0e04\u0e23\u0e31\u0e1a",
    "code": "def f(a):\n    if a < 3 and a > 1:\n\n\n        return a  # tabs\tinside",
    "html that is asked for": "Write HTML: <p>Hello</p><br>&amp;",
    "html in a fence": "```\n<p>Hello</p>\n```",
    "mathematics": "a < b, b > c, x &lt 3",
    "capitals": "THIS IS LOUD and MiXeD",
    "two blank lines": "class A: pass\n\n\nclass B: pass",
    "one line that is boilerplate": "Read more",
}


@pytest.mark.parametrize("name", MENDED)
def test_what_is_broken_is_mended(name):
    before, after, steps = MENDED[name]
    assert cleaned(before) == (after, steps)
    assert cleaned(after) == (after, set()), "mended once, it is sound"


@pytest.mark.parametrize("name", SOUND)
def test_what_is_not_broken_is_not_altered(name):
    assert cleaned(SOUND[name]) == (SOUND[name], set())


@pytest.mark.parametrize("step", ["unicode", "control", "html", "whitespace", "boilerplate"])
def test_each_step_can_be_left_out(step):
    for before, after, steps in MENDED.values():
        found, changes = cleaned(before, **{step: False})
        assert step not in changes
        assert found == after if step not in steps else found != after


def test_the_ends_of_a_plain_completion_are_kept():
    assert cleaned(" white.\r\n", field="completion", kind="prompt+completion")[0] == " white.\n"
    assert cleaned(" white. ", field="output", kind="instruction+output")[0] == "white."


@needs_shared
@pytest.mark.parametrize("name", ["sft_alpaca_en", "math_gsm8k_test", "mt_multi30k_val"])
def test_clean_files_are_hardly_altered(name):
    rows = [json.loads(line) for line in (SHARED / f"data/{name}.jsonl").read_text().split("\n") if line]
    cleaner = Cleaner(Cleaning(whitespace=False), "records", None)
    assert sum(bool(cleaner.row(row)[1]) for row in rows) <= 0.002 * len(rows)


def test_rows_that_teach_nothing_are_named():
    cleaner = Cleaner(Cleaning(min_characters=4), "instruction+output", frozenset({"instruction", "output"}))

    def why(answer, asked="Say it."):
        return cleaner.refusal({"instruction": asked, "output": answer}, answer, "")

    assert why("", "Hi") == "too short"
    assert why(" ", "\n") == "empty"
    assert why("I'm sorry, but I can't help with that.") == "refused answer"
    assert why("As an AI language model, I do not have opinions.") == "refused answer"
    assert why("I\u2019m sorry, but I cannot do that.") == "refused answer"
    assert why("I cannot recommend this cafe enough: it is lovely.") == ""
    assert why("Sorry to hear that! Try turning it off and on again.") == ""
    assert why("Unfortunately, the ship sank.") == ""


def test_languages_are_told_apart_and_short_texts_are_of_none():
    assert language("The quick brown fox jumps over the lazy dog and runs away.") == "en"
    assert language("Der schnelle braune Fuchs springt \u00fcber den faulen Hund und rennt weg.") == "de"
    assert language("Le renard brun rapide saute par-dessus le chien paresseux.") == "fr"
    assert language("2 + 2 = 4") == ""


def test_an_excerpt_shows_the_change():
    before, after = excerpts("a" * 200 + "XY" + "b" * 200, "a" * 200 + "Z" + "b" * 200)
    assert "XY" in before
    assert "Z" in after
    assert len(before) < 140


def test_texts_are_rewritten_where_they_stand_and_roles_are_not():
    record = {"messages": [{"role": "user", "content": "user"}, {"role": "assistant", "content": [{"type": "text", "text": "text"}],
                                                                  "tool_calls": [{"function": {"name": "text", "arguments": {"a": "user"}}}]}], "id": "user"}  # fmt: skip
    fields = frozenset({"messages"})
    assert said(record, fields) == ["user", "text"]
    new = rewritten(record, fields, lambda text, field: text.upper())
    assert new["messages"][0] == {"role": "user", "content": "USER"}
    assert new["messages"][1]["content"] == [{"type": "text", "text": "TEXT"}]
    assert new["id"] == "user"
    everything = everywhere(record, str.upper)
    assert everything["messages"][0] == {"role": "user", "content": "USER"}
    assert everything["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": "USER"}
    assert everything["id"] == "USER"


# --- words, signatures, near duplicates ------------------------------------------------------------------------------


def brute(first, second):
    """Jaccard similarity by plain sets, of words and pairs."""

    def grams(text):
        words = re.findall(r"[^\W]+|[^\w\s]", text.casefold())
        return set(words) | set(itertools.pairwise(words))

    a, b = grams(first), grams(second)
    return len(a & b) / len(a | b)


def texts(count, seed=0, size=40):
    draw = random.Random(seed)
    words = [f"w{i}" for i in range(5000)]
    return [" ".join(draw.choices(words, k=size)) + "." for _ in range(count)]


def test_similarity_is_that_of_plain_sets():
    pairs = [("a b c", "A  b, c"), ("x", "x"), ("a b a b", "b a b a"), *zip(texts(20), texts(20, 1, 10), strict=True)]
    for first, second in pairs:
        second = f"{first} {second}"
        hashes, starts = Words().of([first, second])
        assert similarity(hashes[: starts[1]], hashes[starts[1] :]) == pytest.approx(brute(first, second))


def test_a_signature_estimates_the_similarity_and_knows_nothing_of_its_neighbours():
    base = texts(60)
    changed = [" ".join(text.split(" ")[: 40 - i // 2]) for i, text in enumerate(base)]
    together = signatures(*Words().of(base + changed))
    alone = np.concatenate([signatures(*Words().of([text])) for text in base + changed])
    assert (together == alone).all()
    errors = [(together[i] == together[60 + i]).mean() - brute(base[i], changed[i]) for i in range(60)]
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.05
    assert (signatures(*Words().of(["", "a"]))[0] == 0xFFFF).all()


def test_near_duplicates_are_those_of_brute_force():
    draw = random.Random(4)
    rows = texts(150)
    for text in rows[:60]:
        words = text.split(" ")
        for i in draw.sample(range(len(words)), draw.randrange(1, 12)):
            words[i] = f"n{draw.randrange(10_000)}"
        rows.append(" ".join(words))
    hashes, starts = Words().of(rows)

    def exact(a, b):
        return similarity(hashes[starts[a] : starts[a + 1]], hashes[starts[b] : starts[b + 1]])

    wanted, found = Groups(len(rows)), Groups(len(rows))
    for a, b in itertools.combinations(range(len(rows)), 2):
        if brute(rows[a], rows[b]) >= 0.65:
            wanted.join(a, b)
    for a, b in near_pairs(signatures(hashes, starts), np.arange(len(rows)), 0.65, exact):
        found.join(a, b)
    assert 15 < len(rows) - len(set(wanted.all().tolist())) < 60
    assert (wanted.all() == found.all()).all()


def test_numbers_signs_and_letters_without_spaces_are_words_of_their_own():
    hashes, starts = Words().of(["2+2=4", "2-2=4", "\u4eca\u65e5\u306f\u6674\u308c", "don't"])
    assert np.diff(starts).tolist() == [5, 5, 5, 3]
    assert not np.array_equal(hashes[:5], hashes[5:10])
    runs, owner = grams_of_words(hashes, starts, 2)
    assert owner.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3], "marks are no words, and no run crosses two texts"
    assert len(runs) == len(owner)


def test_groups_join_like_sets():
    groups = Groups(6)
    groups.join(5, 3)
    groups.join(3, 1)
    groups.join_equal(np.array([7, 8, 9, 9, 7, 10], np.uint64))
    assert groups.all().tolist() == [0, 1, 1, 1, 0, 1]


# --- contamination and the split -------------------------------------------------------------------------------------


def test_runs_and_whole_questions_are_met_and_templates_are_not():
    template = "Answer the following question as well as you can and say why you think so please:"
    rows = [[f"{template} {text}", "yes"] for text in texts(40, size=30)]
    known = evaluations([("exam", rows), ("short", [["What is the capital of Peru?"]])], 13)
    words = Words()
    inside = rows[3][0].split(" ")[20:36]
    asked = [
        ["something else", "so it is " + " ".join(inside).upper() + " indeed"],
        ["something else", " ".join(inside[:12]) + " another word"],
        [f"{template} who are you"],
        ["what is the  capital of PERU?"],
        ["My friend asked me: what is the capital of Peru? I said Lima."],
    ]
    found = met(known, words, asked)
    assert found == {0: ("exam", "13 words in a row"), 3: ("short", "the whole question")}
    assert known.common > 0


def test_draws_are_even_and_depend_on_the_seed_and_the_key_alone():
    draws = np.array([split.drawn(1, f"row {i}") for i in range(4000)])
    assert abs((draws < 0.1).mean() - 0.1) < 0.02
    assert split.drawn(1, "row 5") == draws[5] != split.drawn(2, "row 5")


@pytest.mark.parametrize("seed", range(5))
def test_a_group_that_grows_never_leaves_the_test(seed):
    rng = np.random.default_rng(seed)
    draws = rng.random(500)
    section = Splitting()
    links = rng.integers(0, 500, (200, 2)).tolist()
    groups = Groups(500)
    before = split.by_hash(section, draws, groups)
    for a, b in links:
        groups.join(a, b)
        after = split.by_hash(section, draws, groups)
        assert not ((before == split.TEST) & (after != split.TEST)).any()
        assert all(len(set(after[groups.all() == root].tolist())) == 1 for root in {groups.find(a)})
        before = after


def test_hashes_are_the_same_on_every_machine():
    assert content_hash("abc") == 0xD8BB14D833D59559
    assert normalised("  \uff21b\tC\n") == "ab c"
