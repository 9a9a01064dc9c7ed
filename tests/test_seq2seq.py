"""seq2seq.py as people run it: translators of both architectures learn, with transformers' own losses, and lose nothing."""

import json
import random
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import BASE, SHARED, losses, needs_shared, run_script, write_rows
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ByT5Tokenizer,
    MarianConfig,
    MarianMTModel,
    MBart50Tokenizer,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from lorasmith.errors import DataError, ModelError, RecipeError, StoppedError, StoppedNow
from lorasmith.listening import listener

pytestmark = pytest.mark.usefixtures("no_network")

SPECIAL = ["<pad>", "</s>", "<unk>", "<s>"]
SPOKEN, WRITTEN = ([f"{letter}{i}" for i in range(8)] for letter in "ab")
RECIPE = """\
model: {name: BASE, quantization: none, dtype: float32}
adapter: {rank: 16, alpha: 32}
data: {train: TRAIN, eval: EVAL}
run: {effective_batch: 32, micro_batch: 32}
output_dir: unset
trainer: {learning_rate: 1e-2, logging_steps: 1, max_steps: 4, warmup_steps: 0, max_length: 32, max_target_length: 16}
"""


def seq2seq(*words) -> Path:
    return run_script("seq2seq", *words)


def sentences(count, seed, shift=0, again=True):
    """Different sentences with their word-by-word translations by a dictionary, which `shift` makes another one.

    `again` says whether a word may come twice: T5, which knows no positions across, learns faster where none does.
    """
    draw, found = random.Random(seed), {}
    while len(found) < count:
        size = draw.randint(3, 5)
        words = draw.choices(range(8), k=size) if again else draw.sample(range(8), size)
        found[" ".join(SPOKEN[i] for i in words)] = " ".join(WRITTEN[(i + shift) % 8] for i in words)
    return [{"prompt": source, "completion": target} for source, target in found.items()]


def words_tokenizer(begins):
    """A tokenizer of whole words, with EOS behind a text and, for `begins`, BOS before it."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *SPOKEN, *WRITTEN])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if begins else "$A </s>", special_tokens=ends
    )
    names = dict(zip(("pad_token", "eos_token", "unk_token", "bos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def new_model(kind, vocabulary=20):
    """A random model of an architecture, made from its configuration."""
    torch.manual_seed(0)
    ids = {"vocab_size": vocabulary, "d_model": 64, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        sizes = {"d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        shape = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0}
        return T5ForConditionalGeneration(T5Config(**ids, **sizes, **shape))
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
    sizes |= {"max_position_embeddings": 64, "dropout": 0.0, "forced_eos_token_id": None}
    if kind == "marian":
        return MarianMTModel(MarianConfig(**ids, **sizes, decoder_start_token_id=0))
    return BartForConditionalGeneration(BartConfig(**ids, **sizes, bos_token_id=3, decoder_start_token_id=1))


def pretrain(model, tokenizer, steps, again):
    """Teach a model the first dictionary, all weights trained."""
    rows, draw = sentences(2000, seed=1, again=again), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(steps):
        some = draw.sample(rows, 32)
        given = tokenizer([row["prompt"] for row in some], return_tensors="pt", padding=True)
        wanted = tokenizer(text_target=[row["completion"] for row in some], return_tensors="pt", padding=True)
        labels = wanted["input_ids"].masked_fill(wanted["input_ids"] == 0, -100)
        model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def written_recipe(folder, kind, steps):
    """A base that knows the first dictionary, after so many steps, and a recipe that teaches it another one."""
    model, tokenizer = new_model(kind), words_tokenizer(begins=kind == "bart")
    if steps:
        pretrain(model, tokenizer, steps, again=kind != "t5")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = sentences(1100, seed=5, shift=3, again=kind != "t5")
    train, held = write_rows(folder / "train.jsonl", *rows[:1000]), write_rows(folder / "eval.jsonl", *rows[1000:])
    path = folder / "recipe.yaml"
    text = RECIPE.replace("BASE", str(folder / "base")).replace("TRAIN", str(train)).replace("EVAL", str(held))
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    """Recipes over untrained bases, by architecture."""
    return {kind: written_recipe(tmp_path_factory.mktemp(kind), kind, 0) for kind in ("t5", "bart", "marian")}


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("bart"), "bart", 250)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return written_recipe(tmp_path_factory.mktemp("t5"), "t5", 400)


@pytest.fixture(scope="module")
def learnt(bart, tmp_path_factory):
    """A finished run that learnt the other dictionary, with beams."""
    return seq2seq(
        bart, f"output_dir={tmp_path_factory.mktemp('learnt')}/run", "trainer.max_steps=80", "trainer.logging_steps=20",
        "trainer.generation_num_beams=2", "task.answered_rows=60",
    )  # fmt: skip


def figures(folder):
    return json.loads((folder / "run.json").read_text())["metrics"]


def test_a_bart_learns_another_dictionary_and_the_folder_says_how(learnt):
    before, after = figures(learnt)["before"], figures(learnt)["after"]
    assert before["eval_exact_match"] < 0.05
    assert after["eval_exact_match"] >= 0.95
    assert after["eval_bleu"] > 90 > 30 > before["eval_bleu"]
    assert {"eval_loss", "eval_chrf", "eval_rouge1", "eval_rouge2", "eval_rougeL"} <= after.keys() & before.keys()
    answers = [json.loads(line) for line in (learnt / "private/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 60, "as many as task.answered_rows says"
    assert sum(one["adapter"] == one["target"] for one in answers) / 60 == after["eval_exact_match"]
    card = (learnt / "README.md").read_text()
    assert "pipeline_tag: text2text-generation" in card
    assert "| 100 held out while training | bleu | " in card
    assert "tokens of sources" in card
    assert json.loads((learnt / "task.json").read_text()) == {
        "method": "seq2seq", "prefix": "", "max_length": 32, "max_target_length": 16, "num_beams": 2,
        "generation_max_length": 16,
    }  # fmt: skip
    audit = (learnt / "audit.html").read_text()
    assert "&rarr; b" in audit


def test_the_card_tells_how_to_use_it(learnt, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (learnt / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(learnt.parent)
    told = []
    exec(code.replace('"..."', '"a0 a1 a2"'), {"print": told.append})
    assert told == ["b3 b4 b5"]


def test_predict_writes_for_sources_with_targets_and_without(learnt, tmp_path):
    rows = [{"source": "a0 a1 a2"}, *sentences(4, seed=11, shift=3), {"messages": [{"role": "user", "content": "a7"}]}]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    run_script("predict", learnt, path, "--output", tmp_path / "out.jsonl", "--batch", 2)
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[0]["text"] == "b3 b4 b5"
    assert [one["text"] for one in found[1:5]] == [row["completion"] for row in rows[1:5]]
    assert [one["row"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert all(-5 < one["score"] < 0 for one in found)


def opened(folder):
    from lorasmith.runs.opening import open_task

    return open_task(str(folder), None)


def test_a_row_in_a_batch_is_written_as_alone_and_scored_as_transformers_scores(learnt):
    from lorasmith.tasks.generating import generation_settings, written

    one = opened(learnt)
    sources = [one.tokenizer(row["prompt"])["input_ids"] for row in sentences(12, seed=12)]
    settings = generation_settings(one.model, one.tokenizer, 3, 12, languages=False)
    found = {index: (text, score) for index, text, score in written(one.model, one.tokenizer, sources, settings, 5)}
    for index, source in enumerate(sources):
        out = one.model.generate(
            input_ids=torch.tensor([source]), num_beams=3, max_new_tokens=12, do_sample=False,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        text = one.tokenizer.batch_decode(out.sequences, skip_special_tokens=True)[0]
        assert found[index] == (text, pytest.approx(out.sequences_scores.item(), abs=1e-4))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_t5_learns_another_dictionary(t5, tmp_path, quantization):
    folder = seq2seq(
        t5, f"output_dir={tmp_path}/run", "trainer.max_steps=300", "trainer.learning_rate=3e-3", f"model.quantization={quantization}",
        "trainer.logging_steps=50",
    )  # fmt: skip
    assert figures(folder)["before"]["eval_exact_match"] < 0.05
    assert figures(folder)["after"]["eval_exact_match"] >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_bart_learns_another_dictionary(bart, tmp_path, quantization):
    folder = seq2seq(
        bart, f"output_dir={tmp_path}/run", "trainer.max_steps=100", f"model.quantization={quantization}",
        "trainer.logging_steps=50",
    )  # fmt: skip
    assert figures(folder)["after"]["eval_exact_match"] >= 0.95


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_bases_train_and_are_used(new, tmp_path, kind, quantization):
    folder = seq2seq(
        new[kind], f"output_dir={tmp_path}/run", f"model.quantization={quantization}", "task.answered_rows=4",
        "trainer.max_steps=8",
    )  # fmt: skip
    assert losses(folder)[-1] < losses(folder)[0]
    model = opened(folder).model
    kinds = {type(module).__name__ for module in model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    if kind == "t5":
        whole = [one for name, one in model.named_modules() if name.endswith("wo.base_layer")]
        assert {one.weight.dtype for one in whole} == {torch.float32}, "transformers keeps T5's wo in float32"


@pytest.mark.scorecard(row="R8")
@pytest.mark.parametrize(("kind", "smoothing"), [("t5", 0.0), ("bart", 0.1)])
def test_our_losses_are_transformers_own_over_twenty_steps(new, tmp_path, kind, smoothing):
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        set_seed,
    )

    ours = losses(
        seq2seq(
            new[kind], f"output_dir={tmp_path}/run", "data.eval=null", "trainer.max_steps=20",
            f"trainer.label_smoothing_factor={smoothing}", "trainer.train_sampling_strategy=sequential",
        )
    )  # fmt: skip
    base = new[kind].parent / "base"
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForSeq2SeqLM.from_pretrained(base)
    rows = [json.loads(line) for line in (new[kind].parent / "train.jsonl").read_text().splitlines()]
    made = [
        {"input_ids": tokenizer(row["prompt"])["input_ids"],
         "labels": tokenizer(text_target=row["completion"])["input_ids"]}
        for row in rows
    ]  # fmt: skip
    set_seed(42)
    adapted = get_peft_model(
        model, LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules="all-linear")
    )
    arguments = Seq2SeqTrainingArguments(
        output_dir=f"{tmp_path}/theirs", max_steps=20, learning_rate=1e-2, warmup_steps=0, logging_steps=1, seed=42,
        per_device_train_batch_size=32, label_smoothing_factor=smoothing, use_cpu=True,
        train_sampling_strategy="sequential", report_to="none", disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        adapted, arguments, DataCollatorForSeq2Seq(tokenizer, adapted), train_dataset=made, processing_class=tokenizer
    )
    trainer.train()
    theirs = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    assert len(ours) == len(theirs) == 20
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 1e-5
    assert ours[-1] < ours[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_in_pieces_is_the_whole_loss(monkeypatch, smoothing):
    from lorasmith.tasks import losses as ours

    logits = torch.randn(3, 7, 11, requires_grad=True)
    labels = torch.randint(0, 11, (3, 7)).masked_fill(torch.rand(3, 7) < 0.3, -100)
    whole = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    monkeypatch.setitem(ours.CHUNK_BYTES, "cpu", 4 * 11 * 5)
    found = ours.target_tokens(smoothing)({"logits": logits}, labels)
    assert found.item() == pytest.approx(whole.item(), abs=1e-5)
    [gradient], [wanted] = torch.autograd.grad(found, [logits]), torch.autograd.grad(whole, [logits])
    assert torch.allclose(gradient, wanted, atol=1e-6)


@contextmanager
def stopping_at_line(path, line):
    """Ask this process to stop, as a signal does, once a run's log has so many lines."""

    def ask():
        end = time.time() + 400
        while time.time() < end and not (path.exists() and len(path.read_text().splitlines()) >= line):
            time.sleep(0.002)
        listener.asked = "SIGTERM received"

    stopper = threading.Thread(target=ask, daemon=True)
    stopper.start()
    try:
        yield
    finally:
        stopper.join()
        listener.asked = ""


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(new, tmp_path):
    words = [new["marian"], "trainer.max_steps=24", "task.answered_rows=4", "run.micro_batch=16"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    seq2seq(*words, f"output_dir={whole}")
    with (
        stopping_at_line(stopped / "metrics.jsonl", 5),
        pytest.raises(StoppedError, match=r"[Tt]he same command goes on"),
    ):
        seq2seq(*words, f"output_dir={stopped}")
    assert not (stopped / "adapter_model.safetensors").exists()
    [checkpoint] = stopped.glob("checkpoint-*")
    assert 0 < int(checkpoint.name.rpartition("-")[2]) < 24
    seq2seq(*words, f"output_dir={stopped}", "--resume")
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in (whole, stopped))
    assert one == other
    assert losses(whole) == losses(stopped)
    assert figures(whole)["after"]["eval_chrf"] == figures(stopped)["after"]["eval_chrf"]


def test_a_stop_while_held_out_rows_are_written_ends_the_run_and_the_same_command_goes_on(new, tmp_path):
    words = [new["t5"], f"output_dir={tmp_path}/run"]
    with (
        stopping_at_line(tmp_path / "run/metrics.jsonl", 6),
        pytest.raises(StoppedNow, match=r"after the last step. The same command goes on"),
    ):
        seq2seq(*words)
    assert figures(seq2seq(*words))["after"]["eval_bleu"] >= 0


def test_the_same_file_trains_a_decoder_through_sft(new, tmp_path):
    rows = [{"instruction": row["prompt"], "output": row["completion"]} for row in sentences(64, seed=3)]
    kept = {}
    for name, made in (("asked", rows), ("pairs", [{"source": r["instruction"], "target": r["output"]} for r in rows])):
        path = write_rows(tmp_path / f"{name}.jsonl", *made)
        short = [f"data.train={path}", "data.eval=null", "trainer.max_steps=2"]
        ours = seq2seq(new["t5"], *short, f"output_dir={tmp_path}/{name}-t5")
        theirs = run_script(
            "sft", "recipes/quickstart.yaml", *short, "trainer.eval_strategy=no", f"output_dir={tmp_path}/{name}-sft"
        )
        accounts = [json.loads((one / "run.json").read_text())["data"]["train_account"] for one in (ours, theirs)]
        assert [one["trained"] for one in accounts] == [64, 64]
        kept[name] = json.loads((ours / "run.json").read_text())["data"]["fingerprint"]
    assert kept["asked"] == kept["pairs"], "in any shape the same sources and targets"


def test_a_prefix_stands_before_each_source_and_is_used_again(new, tmp_path, capsys):
    folder = seq2seq(
        new["t5"], 'task.prefix="a7 a7 "', f"output_dir={tmp_path}/run", "trainer.max_steps=1", "task.answered_rows=0"
    )
    assert re.search(r"^    a7 a7 a\d", capsys.readouterr().out, re.MULTILINE)
    assert json.loads((folder / "task.json").read_text())["prefix"] == "a7 a7 "
    assert '"a7 a7 " + ' in (folder / "README.md").read_text().replace("'", '"')
    assert "eval_bleu" not in figures(folder)["after"]


WRONG = {
    "no target": ({"prompt": "a0"}, "field `completion` is missing"),
    "an empty target": ({"prompt": "a0", "completion": " "}, "completion: empty"),
    "a number": ({"prompt": 3, "completion": "b0"}, "prompt: a number"),
    "no row": (["a0"], "the row is a list"),
    "more turns": (
        {"prompt": [{"role": "user", "content": "a0"}, {"role": "assistant", "content": "b0"},
                    {"role": "user", "content": "a1"}],
         "completion": [{"role": "assistant", "content": "b1"}]},
        "4 turns (user, assistant, user, assistant); expected one turn of the user and one of the assistant",
    ),
}  # fmt: skip


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("name", WRONG)
def test_a_broken_row_is_one_line(new, tmp_path, name):
    row, told = WRONG[name]
    path = write_rows(tmp_path / "rows.jsonl", *sentences(4, seed=2), row)
    words = [new["t5"], f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run"]
    with pytest.raises(DataError) as caught:
        seq2seq(*words)
    assert str(caught.value).startswith(f"{path}:5: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    seq2seq(*words, "data.on_bad_row=drop")


def test_plain_text_has_no_target(new, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", {"text": "a0 a1"})
    with pytest.raises(DataError, match=r"rows.jsonl:1: text: plain text has no target"):
        seq2seq(new["t5"], f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run", "--dry-run")
    with pytest.raises(RecipeError, match=r"data.format is `text`; it is for sft.py"):
        seq2seq(new["t5"], "data.format=text", f"output_dir={tmp_path}/run", "--dry-run")


def test_targets_that_are_too_long_are_refused_dropped_or_cut_without_an_end(new, tmp_path, capsys):
    rows = [*sentences(20, seed=4), {"prompt": "a1", "completion": " ".join(["b1"] * 20)}]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    words = [new["t5"], f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run"]
    with pytest.raises(DataError) as caught:
        seq2seq(*words, "--dry-run")
    assert str(caught.value) == (
        f"{path}:21: 1 of 21 targets are over trainer.max_target_length (16 tokens; the longest has 21). Set "
        "trainer.max_target_length: 24, which holds 99 %, or data.on_too_long: drop or truncate."
    )
    seq2seq(*words, "--dry-run", "data.on_too_long=drop")
    assert "20 trained, 1 dropped (target too long)" in capsys.readouterr().out
    folder = seq2seq(*words, "data.on_too_long=truncate", "trainer.max_steps=1")
    assert "note: 1 targets are cut to 16 tokens; no end is learnt where they are cut" in capsys.readouterr().out
    account = json.loads((folder / "run.json").read_text())["data"]["train_account"]
    assert (account["trained"], account["truncated"]) == (21, 1)
    assert account["read"] == account["trained"] + sum(account["dropped"].values())


def test_a_cut_target_has_no_end_and_a_cut_source_keeps_it():
    from lorasmith.data.prepare_source_target import prepare_source_target
    from lorasmith.data.rows import Row
    from lorasmith.recipe import Data

    rows = [Row("r:1", prompt="a1 a2 a3 a4", completion="b1 b2 b3 b4")]
    section = Data(train="r", on_too_long="truncate")
    made = prepare_source_target(section, words_tokenizer(begins=False), rows, [], [], "", 3, 3)
    tokenizer = words_tokenizer(begins=False)
    assert tokenizer.decode(list(made.train[0].input_ids)) == "a1 a2 </s>"
    assert tokenizer.decode(made.train[0].target) == "b1 b2 b3"


def test_a_tokenizer_that_ends_no_target_is_refused(new, tmp_path):
    import shutil

    shutil.copytree(new["t5"].parent / "base", tmp_path / "base")
    tokenizer = words_tokenizer(begins=False)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(ModelError, match="writes no </s> behind a target"):
        seq2seq(new["t5"], f"model.name={tmp_path}/base", f"output_dir={tmp_path}/run", "--dry-run")


def many_languages(folder, kind):
    """A base whose tokenizer writes languages: at the end as mBART's, or at the beginning as mBART-50's."""
    words = [(f"\u2581{word}", -2.0) for word in (*SPOKEN, *WRITTEN)]
    made = MBartTokenizer() if kind == "mbart" else MBart50Tokenizer()
    codes = sorted(made.lang_code_to_id)
    listed = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")] + words + [(code, 0.0) for code in codes]
    tokenizer = type(made)(vocab=[*listed, ("<mask>", 0.0)])
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder")
             for name, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 32))}  # fmt: skip
    torch.manual_seed(0)
    config = MBartConfig(vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64, **sizes)
    MBartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["mbart", "mbart50"])
def test_languages_are_written_where_the_tokenizer_has_them(new, tmp_path, kind):
    from lorasmith.data.languages import has_languages
    from lorasmith.tasks.generating import generation_settings

    words = [new["t5"], f"model.name={many_languages(tmp_path / 'base', kind)}", f"output_dir={tmp_path}/run"]
    with pytest.raises(ModelError, match=r"task.target_language is missing; the tokenizer writes it into each target"):
        seq2seq(*words, "--dry-run")
    with pytest.raises(ModelError, match=r"does not know. Did you mean `de_DE`"):
        seq2seq(*words, "--dry-run", "task.source_language=en_XX", "task.target_language=de_D")
    folder = seq2seq(
        *words,
        "task.source_language=fr_XX",
        "task.target_language=de_DE",
        "trainer.max_steps=8",
        "task.answered_rows=4",
    )
    task = json.loads((folder / "task.json").read_text())
    assert (task["source_language"], task["target_language"]) == ("fr_XX", "de_DE")
    one = opened(folder)
    settings = generation_settings(one.model, one.tokenizer, 1, 8, has_languages(one.tokenizer))
    german = one.tokenizer.convert_tokens_to_ids("de_DE")
    source = one.tokenizer("a1")["input_ids"]
    assert one.tokenizer.convert_tokens_to_ids("fr_XX") in source
    if kind == "mbart":
        assert settings.decoder_start_token_id == german
    else:
        assert (settings.decoder_start_token_id, settings.forced_bos_token_id) == (2, german)


def test_a_language_without_a_place_for_it_is_refused(new, tmp_path):
    with pytest.raises(
        ModelError, match=r"task.target_language is `de_DE`; the tokenizer writes no language into texts"
    ):
        seq2seq(new["t5"], "task.target_language=de_DE", f"output_dir={tmp_path}/run", "--dry-run")


@needs_shared
def test_real_translations_and_summaries_train_a_tokenizer_of_bytes(new, tmp_path):
    new_model("t5", 384).save_pretrained(tmp_path / "base")
    ByT5Tokenizer().save_pretrained(tmp_path / "base")
    for columns, file in (("en,de", "mt_multi30k_val"), ("dialogue,summary", "sum_dialogsum_dev")):
        source, target = columns.split(",")
        folder = seq2seq(
            new["t5"], f"model.name={tmp_path}/base", f"data.train={SHARED}/data/{file}.jsonl", "data.eval=null",
            f"data.columns={{prompt: {source}, completion: {target}}}", "data.eval_fraction=0.01",
            "data.on_too_long=truncate", "trainer.max_length=128", "trainer.max_target_length=64", "trainer.max_steps=1",
            "run.effective_batch=2", "run.micro_batch=2", f"output_dir={tmp_path}/{file}", "task.answered_rows=2",
            "trainer.generation_max_length=8",
        )  # fmt: skip
        account = json.loads((folder / "run.json").read_text())["data"]["train_account"]
        assert account["read"] == account["trained"] + sum(account["dropped"].values())
        rows = write_rows(tmp_path / "rows.jsonl", {source: "A dog runs."})
        run_script("predict", folder, rows, "--output", tmp_path / f"{file}.out")
        assert set(json.loads((tmp_path / f"{file}.out").read_text())) == {"row", "place", "text"}


def test_what_has_another_place_is_refused_in_one_line(new, tmp_path):
    for word, told in (
        (
            "trainer.predict_with_generate=true",
            "trainer.predict_with_generate is not set here. Set task.answered_rows.",
        ),
        ("trainer.generation_config=x", "The model's own generation_config.json is used"),
        ("data.train_on=all", "data.train_on is `all`; it is for sft.py"),
        ("task.stride=3", "task.stride is for question_answering.py, not seq2seq.py"),
    ):
        with pytest.raises(RecipeError) as caught:
            seq2seq(new["t5"], word, f"output_dir={tmp_path}/run", "--dry-run")
        assert told in str(caught.value)
    with pytest.raises(ModelError, match=r"trainer.max_target_length is `65`; the model has 64 positions. Lower it."):
        seq2seq(new["bart"], "trainer.max_target_length=65", f"output_dir={tmp_path}/run", "--dry-run")
    with pytest.raises(ModelError):
        seq2seq(new["t5"], f"model.name={BASE}", f"output_dir={tmp_path}/run")


def test_new_tokens_are_trained_in_source_and_target(new, tmp_path):
    from safetensors.torch import load_file

    rows = [
        {"prompt": f"<new> {row['prompt']}", "completion": f"<new> {row['completion']}"} for row in sentences(40, 6)
    ]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    folder = seq2seq(
        new["t5"], "model.add_tokens=['<new>']", f"data.train={path}", "data.eval=null", f"output_dir={tmp_path}/run"
    )
    saved = load_file(folder / "adapter_model.safetensors")
    assert any("shared" in key and tensor.any() for key, tensor in saved.items())
    opened(folder)
