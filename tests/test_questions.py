"""Questions about contexts: read in all shapes of SQuAD, cut into windows, and answered over all windows."""

import json

import numpy as np
import pytest
from conftest import SHARED, needs_shared, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tagged import KINDS, make

from lorasmith.data.answer_spans import best_answers
from lorasmith.data.audit import account_lines, marked
from lorasmith.data.question_tokens import encode_questions, question_windows, tokenize_questions
from lorasmith.data.rows import split_rows
from lorasmith.data.squad import Question, question_of, read_questions
from lorasmith.errors import DataError, ModelError

XQUAD = SHARED / "data/qa_xquad_en.jsonl"
CONTEXT = "Anna Weber sings in Lima. She was born in Zürich, near the old harbour, and has lived there for 5 years."


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return make(request.param)


@pytest.fixture(scope="module")
def quickstart():
    return make("quickstart")


def asked(question="Where does she sing?", answer="Lima", context=CONTEXT, place="rows.jsonl:1"):
    answers = ((answer, context.index(answer)),) if answer else ()
    return Question(place, place, question, context, answers)


def record(**changes):
    answers = {"text": ["Lima"], "answer_start": [20]}
    return {"id": "a", "context": CONTEXT, "question": "Where?", "answers": answers} | changes


def nested(*questions, **changes):
    qas = [{"id": one["id"], "question": one["question"], "answers": listed(one)} | changes for one in questions]
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}


def listed(one):
    texts, starts = one["answers"]["text"], one["answers"]["answer_start"]
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]


def sure_of_the_answers(windows):
    """Logits of a model that knows where the answer is, and that it is nowhere in the other windows."""
    logits = []
    for at in ("start", "end"):
        logits.append([np.full(len(window.input_ids), -9.0) for window in windows])
        for values, window in zip(logits[-1], windows, strict=True):
            values[getattr(window, at)] = 9.0 if window.start != window.null else 5.0
    return logits


def by_plain_loops(question, windows, start_logits, end_logits, n_best, max_answer_length):
    """What run_qa.py does with one question, written out; a span of two windows once, as in BERT's own script."""
    found, null = {}, min(start_logits[i][w.null] + end_logits[i][w.null] for i, w in enumerate(windows))
    for i, window in enumerate(windows):
        context = [at for at in range(len(window.starts)) if window.starts[at] < window.ends[at]]
        likely_starts = sorted(context, key=lambda at: -start_logits[i][window.first + at])[:n_best]
        likely_ends = sorted(context, key=lambda at: -end_logits[i][window.first + at])[:n_best]
        for first in likely_starts:
            for last in likely_ends:
                if first <= last < first + max_answer_length:
                    score = start_logits[i][window.first + first] + end_logits[i][window.first + last]
                    span = window.starts[first], window.ends[last]
                    found[span] = max(score, found.get(span, -np.inf))
    best = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    scores = np.exp([score for _, score in best] + [null])
    return question.context[slice(*best[0][0])], null - best[0][1], scores / scores.sum(), best[0][0]


def test_all_shapes_of_answers_give_the_same_question(tmp_path):
    flat = write_rows(tmp_path / "flat.jsonl", record())
    pairs = write_rows(tmp_path / "pairs.jsonl", record(answers=listed(record())))
    one_line, printed = tmp_path / "one_line.json", tmp_path / "printed.json"
    one_line.write_text(json.dumps(nested(record())))
    printed.write_text(json.dumps(nested(record(), is_impossible=False), indent=2))
    found = [read_questions(str(path)).rows for path in (flat, pairs, one_line, printed)]
    assert {one.digest for [one] in found} == {question_of(record(), "x").digest}
    assert [one.place for [one] in found[2:]] == [
        f"{path}:data[0].paragraphs[0].qas[0]" for path in (one_line, printed)
    ]
    assert found[0][0].answers == (("Lima", 20),)


@pytest.mark.parametrize("answers", [[], {"text": [], "answer_start": []}])
def test_a_question_may_have_no_answer(answers):
    assert question_of(record(answers=answers, is_impossible=True), "x").answers == ()


def test_a_question_to_be_answered_needs_no_answers_and_no_id():
    found = question_of({"question": "Where?", "context": CONTEXT}, "rows.jsonl:7", need_answers=False)
    assert (found.answers, found.id) == (None, "rows.jsonl:7")


def test_questions_about_one_context_stay_on_one_side_of_a_split():
    rows = [asked(f"Where {i}?", context=f"{CONTEXT} {i // 4}") for i in range(40)]
    train, held_out = split_rows(rows, 0.3, 0)
    assert not {row.context for row in train} & {row.context for row in held_out}


def test_a_row_that_is_broken_is_left_out_where_rows_are_dropped(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", record(), record(), record(id="b", question=""))
    found = read_questions(str(path), on_bad_row="drop")
    assert [row.id for row in found.rows] == ["a"]
    assert found.rejected == [
        f"{path}:2: id: `a` is that of {path}:1 too. Fix or remove the line.",
        f"{path}:3: question: empty. Fix or remove the line.",
    ]


def test_a_window_is_a_question_and_a_part_of_its_context_with_the_answer_marked(quickstart):
    [window], account = tokenize_questions(quickstart, [asked()], 128, 32, "error")
    assert marked(quickstart, window.row()) == f"Where does she sing?\n{CONTEXT.replace(' Lima', '[ Lima]')}"
    assert account.notes == [
        "questions: 1 in 1 windows; 0 have no answer, and 0 windows point at the token that stands for none"
    ]


def test_windows_are_those_of_the_library(tokenizer):
    rows = [asked(), asked("Who?", "Anna Weber", CONTEXT * 3), asked("Why?", "", CONTEXT * 5)]
    windows = question_windows(tokenizer, rows, 60, 20)
    apart = "" if None in tokenizer("a", "b").sequence_ids(0)[1:-1] else "\n"
    given = tokenizer(
        [row.question + apart for row in rows], [row.context for row in rows], max_length=60, stride=20,
        truncation="only_second", return_overflowing_tokens=True,
    )  # fmt: skip
    assert [window.input_ids.tolist() for window in windows] == given["input_ids"]
    assert [window.question for window in windows] == given["overflow_to_sample_mapping"]
    if "token_type_ids" in given:
        assert [list(window.token_type_ids) for window in windows] == given["token_type_ids"]
    else:
        assert {window.token_type_ids for window in windows} == {None}
    if tokenizer.cls_token_id is None:
        assert {window.null for window in windows} == {0}
    else:
        assert all(window.input_ids[window.null] == tokenizer.cls_token_id for window in windows)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_answer_is_found_again_from_its_tokens(tokenizer, data):
    context = data.draw(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Mn"]), min_size=1).filter(str.strip)
    )
    start = data.draw(st.integers(0, len(context) - 1))
    answer = context[start : data.draw(st.integers(start + 1, len(context)))]
    row = Question("a:1", "a", "Who?", context, ((answer, start),))
    [tokens] = encode_questions(tokenizer, [row])
    if tokens.answer is None:
        covered = {at for begin, end in zip(tokens.starts, tokens.ends, strict=True) for at in range(begin, end)}
        inside = [at for at in range(start, start + len(answer)) if not context[at].isspace()]
        assert not covered & set(inside)
        return
    first, last = tokens.answer
    found = context[tokens.starts[first] : tokens.ends[last]]
    assert found == found.strip()
    assert tokens.widened or answer.strip().startswith(found) or found in answer
    windows = question_windows(tokenizer, [row], 40 + len(tokens.head), 20)
    if any(window.start != window.null for window in windows):
        [best] = best_answers([row], windows, *sure_of_the_answers(windows), unanswerable=True, max_answer_length=99)
        assert (best.text, best.start) == (found, tokens.starts[first])


def test_an_answer_inside_a_token_is_widened_to_it():
    [window], account = tokenize_questions(make("minilm"), [asked(answer="sing", question="What?")], 64, 8, "error")
    assert CONTEXT[window.starts[window.start - window.first] : window.ends[window.end - window.first]] == "sings"
    assert "answers: 1 begin or end inside a token, which counts as a whole" in account_lines(account)


def test_a_question_whose_answer_is_in_no_window_teaches_nothing(quickstart):
    rows = [asked(), asked(answer="sings in Lima. She was born in Zürich", place="rows.jsonl:2"), asked(answer="")]
    longest = len(encode_questions(quickstart, rows)[0].head) + 16
    windows, account = tokenize_questions(quickstart, rows, longest, 8, "error")
    assert account.dropped == {"answer whole in no window": 1}
    assert {window.place for window in windows} == {"rows.jsonl:1"}
    assert account.read + account.unrolled == account.trained + sum(account.dropped.values())
    pointing = sum(window.start == window.null for window in windows)
    assert account.notes == [
        f"questions: 2 in {len(windows)} windows; 1 have no answer, and {pointing} windows point at the token that "
        "stands for none"
    ]
    assert all(len(window.input_ids) <= longest for window in windows)


def test_a_question_that_leaves_no_room_is_refused_or_left_out(quickstart):
    long = asked("Where? " * 30, place="rows.jsonl:2")
    with pytest.raises(DataError) as caught:
        tokenize_questions(quickstart, [asked(), long], 64, 8, "error")
    assert str(caught.value) == (
        "rows.jsonl:2: question: 151 tokens with the special ones; with 9 for the context that is over "
        "trainer.max_length (64). Shorten it, raise trainer.max_length, or lower task.stride."
    )
    with pytest.raises(DataError, match=r"rows\.jsonl:2: question: 151 tokens"):
        question_windows(quickstart, [asked(), long], 64, 8)
    with pytest.raises(DataError, match=r"151 tokens with the special ones \(the first of 2 such among 3\)"):
        tokenize_questions(quickstart, [asked(), long, long], 64, 8, "error")
    windows, account = tokenize_questions(quickstart, [asked(), long], 64, 8, "drop")
    assert account.dropped == {"question too long": 1}
    assert {window.place for window in windows} == {"rows.jsonl:1"}
    few = [asked(place=f"a:{i}") for i in range(100)]
    assert tokenize_questions(quickstart, [*few, long], 64, 8, "error")[1].dropped == {"question too long": 1}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.integers(1, 40), st.floats(-3, 3))
def test_the_best_answer_is_that_of_plain_loops(quickstart, seed, n_best, longest, threshold):
    rng = np.random.default_rng(seed)
    rows = [asked(), asked(context=CONTEXT * 2), asked(context="Lima")]
    windows = question_windows(quickstart, rows, 40, 10)
    starts, ends = ([rng.normal(0, 2, len(window.input_ids) + 5) for window in windows] for _ in range(2))
    options = {"n_best": n_best, "max_answer_length": longest}
    answers = best_answers(rows, windows, starts, ends, **options)
    allowed = best_answers(rows, windows, starts, ends, unanswerable=True, null_threshold=threshold, **options)
    for i, row in enumerate(rows):
        mine = [k for k, window in enumerate(windows) if window.question == i]
        parts = [windows[k] for k in mine], [starts[k] for k in mine], [ends[k] for k in mine]
        try:
            text, margin, shares, span = by_plain_loops(row, *parts, n_best, longest)
        except IndexError:  # no likely end stands behind a likely start
            assert answers[i].text == ""
            continue
        assert (answers[i].text, answers[i].start, answers[i].end) == (text, *span)
        assert answers[i].null_margin == pytest.approx(margin)
        assert answers[i].probability == pytest.approx(shares[0] / (1 - shares[-1]))
        assert allowed[i].text == ("" if margin > threshold else text)
        assert allowed[i].probability == pytest.approx(shares[-1] if margin > threshold else shares[0])


def test_outputs_that_are_not_finite_are_refused(quickstart):
    windows = question_windows(quickstart, [asked()], 128, 8)
    broken = [np.full(len(windows[0].input_ids), np.nan)]
    with pytest.raises(ModelError, match="not finite"):
        best_answers([asked()], windows, broken, broken)


@needs_shared
@pytest.mark.parametrize("kind", ["quickstart", "minilm", "stories"])
def test_all_answers_of_xquad_are_found_again_from_their_tokens(kind):
    tokenizer = make(kind)
    rows = read_questions(str(XQUAD)).rows
    assert len(rows) == 1190
    windows, account = tokenize_questions(tokenizer, rows, 384, 128, "error")
    assert account.dropped == {}
    found = best_answers(rows, windows, *sure_of_the_answers(windows), unanswerable=True, max_answer_length=384)
    differing = {
        row.answers[0][0]: best.text for row, best in zip(rows, found, strict=True) if best.text != row.answers[0][0]
    }
    assert (
        differing
        == {
            "quickstart": {'"A Machine to End War"': '"A Machine to End War",'},
            "minilm": {"7,000,000 square kilometres (2,70": "7,000,000 square kilometres (2,700"},
            "stories": {},
        }[kind]
    ), "an answer ends inside a token, and is told"
    assert len(differing) == sum("inside a token" in note for note in account.notes)
