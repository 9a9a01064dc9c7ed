"""Rows of tags and of questions: those of docs/task_rows.md are read, broken ones are refused in one line."""

import json
import re

import pytest
from conftest import ROOT

from lorasmith.data.squad import read_questions
from lorasmith.data.tagged import read_tagged
from lorasmith.errors import DataError

TO_DO = re.compile(r"(Fix|Save|Name|Write|Add|Rename|Count|Give) |expected an object")
FIX = "Fix or remove the line."
TAGGED = {"tokens": ["Anna", "Weber", "sings"], "ner_tags": ["B-per", "I-per", "O"]}
SPANS = {"text": "Anna Weber sings", "spans": [{"start": 0, "end": 10, "label": "per"}]}
CONTEXT = "Anna 🎵 sings in Lima, not in Lima Norte."
ASKED = {"id": "a", "context": CONTEXT, "question": "Where?", "answers": {"text": ["Lima"], "answer_start": [16]}}
ANSWERS = "expected {text: [...], answer_start: [...]} or a list of {text, answer_start}. " + FIX


def line(row, **changes):
    return json.dumps(row | changes).encode()


def span(**changes):
    return line(SPANS, spans=[{"start": 5, "end": 10, "label": "per"} | changes])


def answer(text="Lima", start=16, **changes):
    return line(ASKED, id="b", answers=[{"text": text, "answer_start": start} | changes])


# Behind two good rows: the line, and what is said of it.
TAG_LINES = {
    "cut off": (line(TAGGED)[:-3], "not valid JSON (unterminated string starting at at column 71). " + FIX),
    "not UTF-8": (b'{"tokens": ["caf\xe9"], "ner_tags": ["O"]}', "not UTF-8 (invalid continuation byte). Save the file as UTF-8."),
    "a list": (b"[1]", "the row is a list; expected an object with named fields."),
    "other columns": (line({"sentence": "a"}), "columns [sentence]; expected tokens+ner_tags or text+spans. Rename them, or map them with data.columns."),
    "no tags": (line({"tokens": ["a"]}), "field `ner_tags` is missing; expected a tag for each word. " + FIX),
    "no words": (line({"ner_tags": ["O"]}), "columns [ner_tags]; expected tokens+ner_tags or text+spans. Rename them, or map them with data.columns."),
    "an empty row": (line(TAGGED, tokens=[], ner_tags=[]), "tokens: empty; expected a list of words. " + FIX),
    "a tag too few": (line(TAGGED, ner_tags=["O", "O"]), "ner_tags: 2 tags for 3 words. " + FIX),
    "words as a text": (line(TAGGED, tokens="Anna Weber sings"), "tokens: text; expected a list of words. " + FIX),
    "tags as a text": (line(TAGGED, ner_tags="O O O"), "ner_tags: text; expected a list of tags. " + FIX),
    "an empty word": (line(TAGGED, tokens=["Anna", "", "sings"]), "tokens[1]: empty; a word has at least one character. " + FIX),
    "a word of white space": (line(TAGGED, tokens=["Anna", "\u00a0", "sings"]), "tokens[1]: empty; a word has at least one character. " + FIX),
    "a number among words": (line(TAGGED, tokens=["Anna", 5, "sings"]), "tokens[1]: a number; expected text. " + FIX),
    "half a character": (b'{"tokens": ["\\ud83d"], "ner_tags": ["O"]}', "tokens[0]: half of a surrogate pair, which is no character. " + FIX),
    "an empty tag": (line(TAGGED, ner_tags=["O", " ", "O"]), "ner_tags[1]: empty; write O where there is nothing. " + FIX),
    "null for a tag": (line(TAGGED, ner_tags=["O", None, "O"]), "ner_tags[1]: null; expected text. " + FIX),
    "numbers for tags": (line(TAGGED, ner_tags=[1, 2, 0]), "ner_tags[0]: a number; expected a tag such as B-person. Name the tags in task.labels."),
    "true for a tag": (line(TAGGED, ner_tags=[True, "O", "O"]), "ner_tags[0]: true or false; expected text. " + FIX),
    "a tag without a kind": (line(TAGGED, ner_tags=["B-", "O", "O"]), "ner_tags[0]: `B-` among BIO tags; expected O, or B- or I- and a kind. " + FIX),
    "a plain tag among BIO": (line(TAGGED, ner_tags=["B-per", "NOUN", "O"]), "ner_tags[1]: `NOUN` among BIO tags; expected O, or B- or I- and a kind. " + FIX),
    "I- behind O": (line(TAGGED, ner_tags=["I-per", "I-per", "O"]), "ner_tags[0]: `I-per` continues nothing, since `O` stands before it. Write B- at the start of each entity, or set data.on_bad_row: drop."),
    "I- of another kind": (line(TAGGED, ner_tags=["B-per", "I-loc", "O"]), "ner_tags[1]: `I-loc` continues nothing, since `B-per` stands before it. Write B- at the start of each entity, or set data.on_bad_row: drop."),
    "BIOES": (line(TAGGED, ner_tags=["B-per", "E-per", "O"]), "ner_tags[1]: `E-per` is of the BIOES or BILOU scheme; expected BIO. Write it I-per."),
    "BILOU": (line(TAGGED, ner_tags=["U-per", "O", "O"]), "ner_tags[0]: `U-per` is of the BIOES or BILOU scheme; expected BIO. Write it B-per."),
    "an empty text": (line(SPANS, text=" ", spans=[]), "text: empty. " + FIX),
    "a text without a word": (line(SPANS, text="\u200b", spans=[]), "text: without a word. " + FIX),
    "a text without spans": (line({"text": "a"}), "columns [text]; expected tokens+ner_tags or text+spans. Rename them, or map them with data.columns."),
    "spans as an object": (line(SPANS, spans={}), "spans: an object; expected a list of spans. " + FIX),
    "a span without an end": (span(end=None), "spans[0]: `end` is missing; expected {start, end, label}. " + FIX),
    "a span of one number": (line(SPANS, spans=[5]), "spans[0]: a number; expected {start, end, label}. " + FIX),
    "a start as text": (span(start="5"), "spans[0].start: text; expected a character's number. " + FIX),
    "a span out of range": (span(end=17), "spans[0]: 5 to 17 is no part of a text of 16 characters. " + FIX),
    "a span before the text": (span(start=-1), "spans[0]: -1 to 10 is no part of a text of 16 characters. " + FIX),
    "an empty span": (span(end=5), "spans[0]: 5 to 5 is no part of a text of 16 characters. " + FIX),
    "a span without a label": (span(label=" "), "spans[0].label: empty. " + FIX),
    "a span of white space": (span(start=4, end=5), "spans[0]: ` ` has no word. " + FIX),
    "a span that is off by one": (span(text="Anna", start=1, end=5), "spans[0]: `Anna` does not stand at 1, where `nna ` stands, but at 0, 1 character before. " + FIX),
    "a span too long for its text": (span(text="Web"), "spans[0]: 5 to 10, but 3 characters of text. " + FIX),
    "spans that overlap": (line(SPANS, spans=[[5, 10, "per"], [0, 6, "org"]]), "spans[0]: 5 to 10 overlaps spans[1], 0 to 6; a word has one tag. " + FIX),
    "two spans in one word": (line(SPANS, spans=[[0, 7, "per"], [7, 16, "org"]]), "spans[1]: begins inside `Weber`, where another ends; a word has one tag. " + FIX),
}  # fmt: skip
QUESTION_LINES = {
    "cut off": (line(ASKED)[:-4], "not valid JSON (expecting ',' delimiter at column 149). " + FIX),
    "no context": (line({"id": "b", "question": "a"}), "field `context` is missing; expected question, context, answers. Add it, or map the columns with data.columns."),
    "no answers": (line(ASKED, id="b", answers=None), "field `answers` is missing; expected question, context, answers. Add it, or map the columns with data.columns."),
    "an empty question": (line(ASKED, id="b", question=" "), "question: empty. " + FIX),
    "an empty context": (line(ASKED, id="b", context=""), "context: empty. " + FIX),
    "the same id": (line(ASKED, id="1"), "id: `1` is that of {path}:2 too. " + FIX),
    "an empty id": (line(ASKED, id=""), "id: empty. " + FIX),
    "an id as a list": (line(ASKED, id=[]), "id: a list; expected text. " + FIX),
    "answers as a text": (line(ASKED, id="b", answers="Lima"), "answers: text; " + ANSWERS),
    "answers without lists": (line(ASKED, id="b", answers={"text": "Lima", "answer_start": 16}), "answers: no lists of text and answer_start; " + ANSWERS),
    "a start too few": (line(ASKED, id="b", answers={"text": ["Lima", "Anna"], "answer_start": [16]}), "answers: 2 texts, but 1 starts. " + FIX),
    "a text among answers": (line(ASKED, id="b", answers=["Lima"]), "answers[0]: text; expected {text, answer_start}. " + FIX),
    "an empty answer": (answer(text=" "), "answers[0].text: empty; a question without an answer has an empty list. " + FIX),
    "a start as text": (answer(start="16"), "answers[0].answer_start: text; expected a character's number. " + FIX),
    "a start that is off by two": (answer(start=14), "answers[0]: `Lima` does not stand at 14, where `n Li` stands, but at 16, 2 characters after. " + FIX),
    "a start of the other place": (answer(start=28), "answers[0]: `Lima` does not stand at 28, where ` Lim` stands, but at 29, 1 character after. " + FIX),
    "a start in UTF-16 units": (answer(start=17), "answers[0]: `Lima` does not stand at 17, where `ima,` stands, but at 16; it was counted in UTF-16 units. Count characters (code points)."),
    "a start in bytes": (answer(start=19), "answers[0]: `Lima` does not stand at 19, where `a, n` stands, but at 16; it was counted in bytes of UTF-8. Count characters (code points)."),
    "a start behind the end": (answer(start=400), "answers[0]: `Lima` does not stand at 400, outside the 40 characters, but at 29, 371 characters before. " + FIX),
    "an answer that is not there": (answer(text="Cusco"), "answers[0]: `Cusco` does not stand at 16, where `Lima,` stands, nor anywhere else. " + FIX),
    "impossible, but answered": (line(ASKED, id="b", is_impossible=True), "is_impossible: true, but 1 answers given. " + FIX),
    "possible, but not answered": (line(ASKED, id="b", answers=[], is_impossible=False), "is_impossible: false, but no answer given. " + FIX),
    "impossible in a word": (line(ASKED, id="b", is_impossible="yes"), "is_impossible: text; expected true or false. " + FIX),
    "an article without paragraphs": (line({"data": [{"title": "a"}]}), "{path}:data[0]: paragraphs: null; expected a list, as in SQuAD's files. Fix the file."),
    "a paragraph without a context": (line({"data": [{"paragraphs": [{"qas": [{"question": "a"}]}]}]}), "{path}:data[0].paragraphs[0].qas[0]: field `context` is missing; expected question, context, answers. Add it, or map the columns with data.columns."),
}  # fmt: skip


def refusal(read, path):
    with pytest.raises(DataError) as caught:
        read(str(path))
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    assert TO_DO.search(told), "it does not say what to do"
    return told


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", TAG_LINES)
def test_a_broken_row_of_tags_is_refused_with_its_line(tmp_path, name):
    broken, told = TAG_LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([line(TAGGED), line(SPANS), broken]) + b"\n")
    assert refusal(read_tagged, path) == f"{path}:3: {told}"
    assert read_tagged(str(path), on_bad_row="drop").rejected == [f"{path}:3: {told}"]


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", QUESTION_LINES)
def test_a_broken_question_is_refused_with_its_line(tmp_path, name):
    broken, told = QUESTION_LINES[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([line(ASKED), line(ASKED, id=1, answers=[]), broken]) + b"\n")
    told = told.replace("{path}", str(path))
    expected = told if told.startswith(str(path)) else f"{path}:3: {told}"
    assert refusal(read_questions, path) == expected
    assert read_questions(str(path), on_bad_row="drop").rejected == [expected]


def test_a_broken_nested_file_is_refused_with_its_line(tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": []}]}, indent=1).replace("[]", "[,]"))
    assert refusal(read_questions, path) == f"{path}:4: not valid JSON (expecting value at column 19). Fix the file."
    path.write_text(json.dumps({"data": []}))
    assert refusal(read_questions, path) == f"{path}: no rows. Give at least one."


def test_a_number_beyond_the_named_tags_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line(TAGGED, ner_tags=[0, 0, 5]))
    with pytest.raises(DataError) as caught:
        read_tagged(str(path), names=["O", "B-per"])
    assert str(caught.value) == f"{path}:1: ner_tags[2]: 5, but 2 tags are named, from 0 on. {FIX}"


def test_every_example_of_the_page_on_rows_is_read(tmp_path):
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs/task_rows.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "rows.jsonl"
    found = []
    for block, read in zip(blocks, (read_tagged, read_tagged, read_questions), strict=True):
        path.write_text(block, encoding="utf-8")
        found.append(read(str(path)).rows)
    words, spans, questions = found
    assert [row.tags for row in spans] == [(*words[0].tags, "O")] * 2, "the full stop is a word"
    assert [row.answers for row in questions] == [(("Lima", 20),), (("Anna Weber", 0),), ()]
