"""What eval.py does besides comparing an adapter with its base: others, going on, conditions, pages, judges, tasks."""

import http.server
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import BASE, ROOT, launch, run_script, write_rows
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorasmith.data.formats import read_rows
from lorasmith.errors import DivergedError, LorasmithError
from lorasmith.evaluation.harness import files_fingerprint
from lorasmith.evaluation.judge import Judge, Question, check_judge
from lorasmith.runs.comparing import Outcome, against
from lorasmith.runs.contestants import names_of
from lorasmith.runs.evaluating import GENERAL_TEXTS, Wanted, metrics_of
from lorasmith.runs.results import ResultFile

pytestmark = pytest.mark.usefixtures("no_network")

DATA = "quickstart/data/heldout.jsonl"


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    return shutil.copytree(trained, tmp_path_factory.mktemp("parts") / "first")


@pytest.fixture(scope="module")
def weaker(adapter):
    """The same adapter with half of its effect, as another run would leave one."""
    folder = shutil.copytree(adapter, adapter.parent / "weaker", ignore=shutil.ignore_patterns("private"))
    tensors = load_file(folder / "adapter_model.safetensors")
    halved = {name: one / 2 if "lora_B" in name else one for name, one in tensors.items()}
    save_file(halved, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def evaluate(*words, data=DATA):
    """Run eval.py in this process; the results that it wrote."""
    run_script("eval", *words, "--data", data)
    return json.loads((words[words.index("--output") + 1] / "results.json").read_text())


def test_a_whole_model_alone_gets_its_figures(tmp_path, capsys):
    found = evaluate(BASE, "--limit", 6, "--output", tmp_path)
    assert found["scores"] == {}
    assert found["figures"]["model"]["perplexity"] == pytest.approx(np.exp(found["figures"]["model"]["loss"]))
    assert "a whole model has no base to compare with" in capsys.readouterr().out


def test_rows_that_are_too_long_are_left_out_of_the_count(tmp_path, capsys):
    rows = [{"prompt": "a b" * size, "completion": "c"} for size in (2, 3, 600)]
    found = evaluate(BASE, "--output", tmp_path / "out", data=write_rows(tmp_path / "rows.jsonl", *rows))
    assert found["rows"] == 2
    assert "1 dropped (too long)" in capsys.readouterr().out


def test_an_adapter_beside_another_scores_as_it_does_alone(adapter, weaker, tmp_path):
    alone = evaluate(weaker, "--limit", 6, "--no-forgetting", "--output", tmp_path / "alone")["figures"]
    words = ("--compare", weaker, BASE, "--limit", 6, "--no-forgetting", "--output", tmp_path / "both")
    found = evaluate(adapter, *words)
    assert found["figures"]["weaker"] == pytest.approx(alone["adapter"], rel=1e-4)
    assert found["figures"]["base"] == pytest.approx(alone["base"], rel=1e-4)
    assert found["against"]["weaker"]["loss"]["verdict"] == "better"
    # The base that was named is the same weights without 4 bit, loaded when the others were gone.
    assert found["figures"]["quickstart/base"]["loss"] == pytest.approx(found["figures"]["base"]["loss"], rel=0.1)


def test_an_evaluation_goes_on_where_it_was_left(adapter, tmp_path, capsys):
    words = (adapter, "--limit", 8, "--output", tmp_path)
    whole = evaluate(*words)
    (file,) = tmp_path.glob("rows-adapter-*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:11]) + lines[11][:9])  # 8 losses, 3 answers, and one that was cut off
    capsys.readouterr()
    again = evaluate(*words)
    out = capsys.readouterr().out
    assert "adapter: 3 of 8 answers are known from before" in out
    assert "base: 8 of 8 answers are known from before" in out
    assert again["scores"] == whole["scores"]
    assert len(file.read_text().splitlines()) == 16
    evaluate(adapter, "--limit", 9, "--output", tmp_path)
    assert "base: 8 of 9 losses are known from before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stop_in_mid_evaluation_keeps_what_is_done(adapter, tmp_path):
    words = [sys.executable, "scripts/eval.py", adapter, "--data", DATA, "--batch", 1, "--output", tmp_path]
    process = subprocess.Popen([*map(str, words)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not any(file.stat().st_size for file in tmp_path.glob("rows-base-*")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 75
    assert told == f"stopped: SIGTERM received; results so far are kept in {tmp_path}. The same command goes on.\n"
    done = launch(*words[1:])
    assert done.returncode == 0, done.stderr
    assert "losses are known from before" in done.stdout


def test_a_condition_that_holds_ends_with_4(adapter, tmp_path):
    words = (adapter, "--data", DATA, "--limit", 4, "--output", tmp_path)
    with pytest.raises(DivergedError, match=r"--fail-if: exact_match < 0\.9 holds: it is 0") as failed:
        run_script("eval", *words, "--fail-if", "loss > 1e9", "--fail-if", "exact_match < 0.9")
    assert failed.value.exit_code == 4
    run_script("eval", *words, "--fail-if", "delta:loss > 0")


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--fail-if", "exact_mach < 1"), "Did you mean `exact_match`"),
        (("--fail-if", "bias_stereotype > 0.6"), "no figure `bias_stereotype`"),
        (("--metrics", "meteor"), "--metrics: no metric `meteor`. There are: loss, exact_match"),
        (("--group", "topic"), "no column `topic`, which --group names"),
        (("--regex", "("), "regular expression"),
        (("--judge", "http://127.0.0.1:9"), "--judge needs --judge-model"),
        (("--compare", "../shared/models/none"), "no such|not loaded|not on this machine"),
    ],
)
def test_what_cannot_be_had_is_refused_before_weights_are_read(adapter, capsys, words, refusal):
    with pytest.raises(LorasmithError, match=refusal):
        run_script("eval", adapter, "--data", DATA, "--limit", 3, *words)
    assert "model:" not in capsys.readouterr().out


def test_groups_lean_and_named_metrics_reach_the_page_the_card_and_run_json(adapter, tmp_path):
    rows = [json.loads(line) for line in (ROOT / DATA).read_text().splitlines()[:12]]
    data = write_rows(tmp_path / "rows.jsonl", *({**row, "shop": "ab"[i % 2]} for i, row in enumerate(rows)))
    pair = {"sent_more": "Old people forget.", "sent_less": "Young people forget.", "bias_type": "age"}
    others = [{**pair, "sent_more": f"Old {word}."} for word in "abcdefghijk"]
    pairs = write_rows(tmp_path / "pairs.jsonl", pair, *others)
    words = (adapter, "--metrics", "chrf,exact_match", "--regex", r"\{", "--group", "shop", "--bias", pairs)
    run_script("eval", *words, "--data", data)
    record = json.loads((adapter / "run.json").read_text())["evaluations"][-1]
    assert {"chrf", "regular_expression", "general_loss", "bias_stereotype", "bias_stereotype:age"} <= {
        *record["scores"]
    }
    assert "rouge1" not in record["scores"]
    assert record["bias"]["pairs"] == 12
    assert set(record["groups"]["adapter"]["chrf"]["groups"]) == {"a", "b"}
    card = (adapter / "README.md").read_text()
    assert "| 12 of rows.jsonl | chrf |" in card
    assert "| 12 pairs of sentences | bias stereotype |" in card
    assert "bias stereotype:age" not in card
    (page,) = (adapter / "private/evaluations").glob("rows-*/report.html")
    text = page.read_text()
    assert "<script" not in text
    assert not re.search(r'(?:src|href)="(?!#|data:)', text)
    for heading in ("Figures", "Answers that differ most", "Groups", "Stereotypes", "General texts"):
        assert f">{heading}</h2>" in text


def test_rows_say_which_metrics_they_ask_for(tmp_path):
    def asked(*answers, final=None):
        rows = [{"question": f"q{i}", "answer": answer} for i, answer in enumerate(answers)]
        read = read_rows(str(write_rows(tmp_path / "r.jsonl", *rows))).rows
        return metrics_of(read, [final] * len(read))

    assert asked("a", '{"a": 1}') == ("exact_match",)
    assert asked('{"a": 1}', "[2]") == ("exact_match", "json_valid", "json_equal")
    assert asked("so 4\n#### 4", "#### 5") == ("exact_match", "numeric_match")
    assert asked("4", "5", final="4") == ("exact_match", "numeric_match")


def test_the_general_texts_are_many_kinds_and_each_its_own():
    rows = [json.loads(line) for line in GENERAL_TEXTS.read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len(rows) >= 60
    assert len({row["kind"] for row in rows}) >= 20
    assert sum(len(row["text"].split()) for row in rows) > 3500


def test_losses_by_token_are_not_compared_where_the_tokens_differ(tmp_path):
    rows = read_rows(str(write_rows(tmp_path / "r.jsonl", *({"text": f"text {i}"} for i in range(8))))).rows
    wanted = Wanted(rows, [None] * 8, ())
    found = {"rows": {key: {"nats": 3.0, "tokens": 2} for key in wanted.keys("rows")}}
    first = Outcome("model", "a", "k", "tokens", found)
    assert against(first, Outcome("b", "b", "l", "others", found), wanted).incomparable == ["loss", "perplexity"]
    assert against(first, Outcome("b", "b", "l", "tokens", found), wanted).incomparable == []


def test_others_have_short_names_of_their_own():
    assert list(names_of(["runs/a", "quickstart/base", "other/a", "org/name"]).values()) == [
        "a",
        "quickstart/base",
        "other/a",
        "name",
    ]


def test_a_result_file_puts_lines_of_a_row_together_and_drops_one_that_was_cut(tmp_path):
    path = tmp_path / "r.jsonl"
    with ResultFile(path) as file:
        file.add("a", {"nats": 1.0})
        file.add("b", {"nats": 2.0})
        file.add("a", {"answer": "x\ny"})
    path.write_text(path.read_text() + '{"row": "b", "answ')
    with ResultFile(path) as file:
        assert file.of(["a"]) == [{"row": "a", "nats": 1.0, "answer": "x\ny"}]
        assert file.lacking(["a", "b", "c", "b"], "answer") == ["b", "c"]
        file.add("b", {"answer": "z"})
    assert [json.loads(line)["row"] for line in path.read_text().splitlines()] == ["a", "b", "a", "b"]


@pytest.fixture
def judge_server(monkeypatch):
    """A real server that prefers answers with `good`, and whatever stands first among equals; it fails at times."""
    seen: list[dict] = []
    failing = {"left": 0, "code": 500}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "key": self.headers["Authorization"], **asked})
            if failing["left"]:
                failing["left"] -= 1
                self.send_error(failing["code"])
                return
            text = asked["messages"][0]["content"]
            first, second = re.search(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\n", text, re.DOTALL).groups()
            said = "B" if "good" in second and "good" not in first else "A"
            said = "I cannot say." if "strange" in text else f"[[A]]? On second thoughts: [[{said}]]"
            body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-judge-12345")
    yield f"http://127.0.0.1:{server.server_port}/v1", seen, failing
    server.shutdown()


def test_a_judge_is_asked_in_both_orders_so_that_position_decides_nothing(judge_server):
    url, seen, _ = judge_server
    questions = [
        Question("wins", "q", "", "bad", "good"),
        Question("loses", "q", "", "good", "bad {first}"),
        Question("alike", "q", "", "one", "two"),
        Question("none", "strange", "", "one", "two"),
    ]
    found = {row: (score, why) for row, score, why in Judge(url, "m", pause=0.01).verdicts(questions)}
    assert [found[row][0] for row in ("wins", "loses", "alike", "none")] == [1.0, 0.0, 0.5, None]
    assert found["none"][1] == "no [[A]], [[B]] or [[C]] in what it said"
    assert {one["path"] for one in seen} == {"/v1/chat/completions"}
    assert {one["key"] for one in seen} == {"Bearer sk-secret-of-the-judge-12345"}
    assert len(seen) == 7


def test_a_busy_judge_is_asked_again_and_a_wrong_address_ends_it(judge_server):
    url, seen, failing = judge_server
    failing["left"] = 2
    judge = Judge(url, "m", pause=0.01)
    assert [score for _, score, _ in judge.verdicts([Question("a", "q", "", "bad", "good")])] == [1.0]
    assert len(seen) == 4
    failing |= {"left": 99, "code": 401}
    with pytest.raises(LorasmithError, match=r"HTTP 401 Unauthorized\. Check the address and the model"):
        list(judge.verdicts([Question("a", "q", "", "bad", "good")]))
    assert len(seen) == 5


def test_a_judge_that_is_not_there_is_one_line():
    with pytest.raises(LorasmithError, match=r"--judge: http://127.0.0.1:9: .*refused"):
        list(Judge("http://127.0.0.1:9", "m", tries=2, pause=0.01).verdicts([Question("a", "q", "", "x", "y")]))
    with pytest.raises(LorasmithError, match="begins with http"):
        check_judge("localhost:80", "m", "{question}{first}{second}")
    with pytest.raises(LorasmithError, match=r"\{second\} is missing"):
        check_judge("http://a", "m", "{question}{first}")


def test_what_a_judge_says_is_a_figure_and_its_key_is_written_nowhere(adapter, judge_server, tmp_path):
    url, seen, _ = judge_server
    words = (adapter, "--limit", 6, "--judge", url, "--judge-model", "m", "--no-forgetting", "--output", tmp_path)
    found = evaluate(*words)
    assert found["scores"]["judge_preference"]["adapter"] == 0.5
    asked = len(seen)
    evaluate(*words)
    assert len(seen) == asked
    written = [path for folder in (tmp_path, adapter) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in written if b"secret-of-the-judge" in path.read_bytes()]


def test_a_local_task_of_the_harness_runs_without_a_network(adapter, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [{"q": f"{i} and 1 are", "options": [str(i + 1), str(i)], "gold": 0} for i in range(12)]
    data = write_rows(tmp_path / "sums.jsonl", *rows)
    (tmp_path / "sums.yaml").write_text(f"""\
task: sums_local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: gold
doc_to_choice: options
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    words = (adapter, "--limit", 8, "--no-forgetting", "--tasks", "sums_local", "--include-path", tmp_path)
    found = evaluate(*words, "--output", tmp_path / "out", "--fail-if", "sums_local:acc < 0")
    score = found["scores"]["sums_local:acc"]
    assert 0 <= score["base"] <= 1
    assert (score["base"] * 8) % 1 == 0


def test_without_the_harness_a_task_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(LorasmithError, match=r"--tasks needs lm-evaluation-harness\. Install it: pip install"):
        run_script("eval", BASE, "--data", DATA, "--tasks", "arc_easy")


def test_a_task_is_known_by_its_file_and_its_data(tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", {"a": 1})
    (tmp_path / "t.yaml").write_text(f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n")
    before = files_fingerprint(str(tmp_path))
    assert files_fingerprint(str(tmp_path)) == before
    write_rows(data, {"a": 1}, {"a": 2})
    assert files_fingerprint(str(tmp_path)) != before


def test_a_sentence_is_scored_whole_behind_the_token_that_begins_a_text(tmp_path):
    """Against the full logits of transformers' own model and a softmax in float64."""
    pair = {"sent_more": "Send ten lamps.", "sent_less": "Send ten red lamps."}
    pairs = write_rows(tmp_path / "pairs.jsonl", pair)
    evaluate(BASE, "--limit", 1, "--bias", pairs, "--output", tmp_path / "out")
    (file,) = (tmp_path / "out").glob("bias-*.jsonl")
    found = json.loads(file.read_text())
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    for name, sentence in (("more", pair["sent_more"]), ("less", pair["sent_less"])):
        ids = [tokenizer.eos_token_id, *tokenizer(sentence, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        assert found[name] == pytest.approx(expected, rel=0.02)  # eval.py may compute in bfloat16
        assert found[f"{name}_tokens"] == len(ids) - 1
