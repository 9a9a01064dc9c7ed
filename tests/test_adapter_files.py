"""adapter.py: what it says of adapters is so, and what it makes loads in plain peft and answers the same."""

import gzip
import importlib.util
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from conftest import BASE, ROOT
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorasmith import leaks
from lorasmith.errors import LorasmithError
from lorasmith.export import clinic, contents, layouts, parcel, surgery
from lorasmith.export.adapter_file import read_adapter
from lorasmith.models import weight_fingerprint
from lorasmith.runs.ending import run_script

IDS = torch.arange(3, 35)[None]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def run(capsys):
    """Call adapter.py in this process; give its exit code, output and errors."""
    spec = importlib.util.spec_from_file_location("adapter_script", ROOT / "scripts/adapter.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*words):
        before, sys.argv = sys.argv, ["scripts/adapter.py", *map(str, words)]
        capsys.readouterr()
        try:
            run_script(script.main)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
        out = capsys.readouterr()
        # Bars of transformers, which this process imported before the script could silence it.
        told = [line for line in out.err.splitlines() if line and not line.startswith("Loading weights")]
        assert len(told) == (1 if code else 0), out.err
        return types.SimpleNamespace(code=code, out=out.out, err="".join(f"{line}\n" for line in told))

    return call


def plain(folder, base, dtype=torch.float32):
    """Logits of an adapter loaded by peft alone."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), str(folder)).eval()
    with torch.no_grad():
        return model(input_ids=IDS).logits.double()


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def live(small_model, tmp_path):
    """Make an adapter with effect, by peft alone: its folder, its base's, and its logits."""

    def make(name="live", kind="llama", base_changes=None, **settings):
        base = small_model(kind, **(base_changes or {}))
        torch.manual_seed(1)
        settings = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]} | settings
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **settings)
        )
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.1 * torch.randn_like(weight))
        model.eval().save_pretrained(tmp_path / name, save_embedding_layers=False)
        with torch.no_grad():
            return tmp_path / name, base, model(input_ids=IDS).logits.double()

    return make


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder, function):
    """Rewrite an adapter's tensors."""
    tensors = load_file(folder / WEIGHTS)
    save_file({name: one.contiguous() for name, one in (function(tensors) or tensors).items()}, folder / WEIGHTS)


# --- show, list, diff ------------------------------------------------------------------------------------------------


def test_show_says_what_the_run_recorded(run, trained):
    done = run("show", trained)
    record = json.loads((trained / "run.json").read_text())
    assert done.code == 0
    assert "method: lora, rank 16, alpha 32, saved as F32" in done.out
    assert "in 5 layers (0 to 4)" in done.out
    assert f"base: quickstart/base, revision not recorded, weights {record['base']['fingerprint'][:12]}" in done.out
    assert f"trained: {record['finished']}, sft on 480 rows of train.jsonl" in done.out
    after = record["metrics"]["after"]["eval_loss"]
    assert f"after: {after:.4f}" in done.out or f"{after:.4f} after" in done.out
    found = json.loads(run("show", trained, "--json").out)
    assert found["parameters"] == record["adapter"]["trainable"]
    assert found["bytes"] == sum(one.nbytes for one in load_file(trained / WEIGHTS).values())
    assert sum(row["bytes"] for row in found["bill"].values()) == found["bytes"]


def test_show_reads_ranks_licence_and_scores(run, live):
    folder, _, _ = live(rank_pattern={"layers.1.self_attn.q_proj": 2}, modules_to_save=["norm"])
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# x\n")
    scores = {"exact match": {"base": 0.0, "adapter": 0.75}}
    (folder / "run.json").write_text(json.dumps({"evaluations": [{"data": "d", "rows": 4, "scores": scores}]}))
    out = run("show", folder).out
    assert "rank    2: model.layers.1.self_attn.q_proj" in out
    assert "licence: apache-2.0" in out
    assert "exact match on 4 rows of d: base 0.0000, adapter 0.7500" in out
    assert "input_layernorm weight" in out


@pytest.mark.parametrize(
    "card", ["", "---\nlicense: [a]\n---\n", "---\na: &a [*a]\nlicense: *a\n---", "---\n{{{\n---\n", "# x"]
)
def test_a_card_without_a_readable_licence_states_none(card, tmp_path):
    (tmp_path / "README.md").write_text(card)
    assert contents.licence(tmp_path) is None


def test_names_in_an_adapter_do_not_steer_the_terminal(run, live):
    folder, _, _ = live()
    edit(folder / CONFIG, base_model_name_or_path="x\x1b[2Jy\x1b]0;owned\x07")
    out = run("show", folder).out
    assert "\x1b" not in out
    assert "x␛[2Jy" in out


def test_the_quick_commands_import_no_torch(trained, tmp_path):
    code = (
        "import sys, runpy\nfor words in {commands!r}:\n    sys.argv = ['scripts/adapter.py', *words]\n"
        "    runpy.run_path('scripts/adapter.py', run_name='__main__')\n"
        "assert not {{'torch', 'transformers', 'peft', 'huggingface_hub.hf_api'}} & set(sys.modules)\nprint('light')"
    )
    parcel_file = tmp_path / "a.lora.tar.gz"
    commands = [
        ["show", str(trained)],
        ["check", str(trained)],
        ["list", str(trained.parent)],
        ["diff", str(trained), str(trained)],
        ["pack", str(trained), "--out", str(parcel_file)],
        ["unpack", str(parcel_file), "--out", str(tmp_path / "u")],
    ]
    words = [sys.executable, "-c", code.format(commands=commands)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("light\n")


def test_list_is_a_table_even_of_broken_runs(run, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "good")
    shutil.copytree(trained, tmp_path / "evaluated")
    scores = {"loss": {"base": 3.0, "adapter": 1.0}, "exact match": {"base": 0.0, "adapter": 0.5}}
    edit(tmp_path / "evaluated/run.json", evaluations=[{"scores": scores}])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/run.json").write_text('{"metrics": 3, "base": [], "evaluations": {"a": 1}}')
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/status.json").write_text('{"exit_code": 75}')
    (tmp_path / "unrelated").mkdir()
    done = run("list", tmp_path)
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert set(lines) == {"name", "good", "evaluated", "broken", "odd", "stopped"}
    assert "quickstart/base" in lines["good"]
    assert "loss 3.494 -> " in lines["good"]
    assert lines["good"].endswith("done")
    assert "exact match 0.000 -> 0.500" in lines["evaluated"]
    assert lines["stopped"].endswith("stopped, can go on")
    assert len(json.loads(run("list", tmp_path, "--json").out)) == 5


def test_diff_is_that_of_the_full_matrices_at_other_ranks_too(live):
    first, _, _ = live("a")
    second, _, _ = live("b", r=4, lora_alpha=12, use_rslora=True, alpha_pattern={"layers.0.mlp.down_proj": 3})
    found = contents.compare(read_adapter(first), read_adapter(second))
    one, two = load_file(first / WEIGHTS), load_file(second / WEIGHTS)
    for layer in (0, 1):
        for module in (f"model.layers.{layer}.self_attn.q_proj", f"model.layers.{layer}.mlp.down_proj"):
            a, b = (
                weights[f"base_model.model.{module}.lora_B.weight"].double()
                @ weights[f"base_model.model.{module}.lora_A.weight"].double()
                for weights in (one, two)
            )
            scale = (3 if module == "model.layers.0.mlp.down_proj" else 12) / math.sqrt(4)
            expected = relative(b * scale, a * 2)
            assert found["modules"][module] == pytest.approx(expected, rel=1e-10)
    assert found["config"]["r"] == [8, 4]
    assert found["only_first"] == found["only_second"] == []
    assert set(found["kinds"]) == {"q_proj", "down_proj"}


def test_diff_of_an_adapter_with_itself_is_nothing(run, trained):
    done = run("diff", trained, trained)
    assert done.code == 0
    assert [line.split()[2] for line in done.out.splitlines()[2:]] == ["0"] * 7


def test_diff_names_recipes_and_tensors_of_one_alone(run, live, trained):
    first, _, _ = live("a", modules_to_save=["lm_head"])
    second, _, _ = live("b", target_modules=["q_proj"])
    (first / "run.json").write_text('{"recipe": {"trainer": {"learning_rate": 1}, "seed": 1}}')
    (second / "run.json").write_text('{"recipe": {"trainer": {"learning_rate": 2}, "seed": 1}}')
    out = run("diff", first, second).out
    assert "recipe trainer.learning_rate: 1, in the other 2" in out
    assert "seed" not in out
    assert f"only in {first}: base_model.model.lm_head.weight" in out
    kinds = {line.split()[0]: line.split() for line in out.splitlines()}
    assert kinds["down_proj"][2] == "1.00e+00"


def test_adapters_of_other_bases_are_no_pair(run, live, trained):
    folder, _, _ = live()
    done = run("diff", trained, folder)
    assert done.code == 2
    assert "different bases" in done.err


# --- check -----------------------------------------------------------------------------------------------------------


def test_what_training_wrote_is_sound(run, trained):
    done = run("check", trained, "--base", BASE)
    assert done.code == 0
    assert f"{trained} is sound\n" in done.out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"trainable_token_indices": {"embed_tokens": [1, 2]}},
        {"bias": "lora_only", "base_changes": {"attention_bias": True}},
        {"lora_bias": True, "base_changes": {"attention_bias": True, "mlp_bias": True}},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
        {"layers_to_transform": [1]},
        {"kind": "gpt2", "target_modules": ["c_attn"]},
    ],
    ids=str,
)
def test_whatever_peft_writes_is_sound(settings, live):
    folder, base, _ = live(**settings)
    found = clinic.check(read_adapter(folder), base, weight_fingerprint)
    assert [one for one in found if one.kind != "note"] == []


def not_finite(folder):
    def spoil(tensors):
        tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"][1, 2] = math.nan

    change(folder, spoil)


def infinite_in_bf16(folder):
    def spoil(tensors):
        tensors = {name: one.bfloat16() for name, one in tensors.items()}
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"][0, 0] = -math.inf
        return tensors

    change(folder, spoil)


def inert(folder):
    change(folder, lambda tensors: {name: one * (0.0 if "lora_B" in name else 1) for name, one in tensors.items()})


def negative_zeros(folder):
    change(folder, lambda tensors: {name: one * -0.0 for name, one in tensors.items()})


def lacks_one(folder):
    change(
        folder, lambda tensors: {name: one for name, one in tensors.items() if "0.self_attn.q_proj.lora_B" not in name}
    )


def lacks_a_module(folder):
    change(folder, lambda tensors: {name: one for name, one in tensors.items() if "down_proj" not in name})


def has_more(folder):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    change(folder, lambda t: t | {name.format("A"): torch.ones(8, 64), name.format("B"): torch.ones(128, 8)})


def saved_unasked(folder):
    change(
        folder, lambda tensors: tensors | {"base_model.model.model.layers.0.mlp.up_proj.weight": torch.ones(128, 64)}
    )


def another_rank(folder):
    edit(folder / CONFIG, r=4)


def ranks_apart(folder):
    def spoil(tensors):
        name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        tensors[name] = tensors[name][:3]

    change(folder, spoil)


def another_template(folder):
    shutil.copy(ROOT / BASE / "tokenizer_config.json", folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "run.json").write_text(json.dumps({"template_hash": "0" * 64}))


def pickle_beside(folder):
    torch.save({}, folder / "training_args.bin")


def secret_inside(folder):
    (folder / "README.md").write_text("token hf_" + "aB3" * 12)


def secret_in_the_header(folder):
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt", "who": "hf_" + "aB3" * 12})


UNSOUND = {
    not_finite: (4, "diverged base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight holds numbers that are not finite"),
    infinite_in_bf16: (4, "layers.1.mlp.down_proj.lora_B.weight holds numbers that are not finite"),
    inert: (4, "inert: lora_B or lora_A is zero in all 4 modules"),
    negative_zeros: (4, "inert: all of its tensors are zero"),
    lacks_one: (2, "model.layers.0.self_attn.q_proj has lora_A and lacks lora_B"),
    lacks_a_module: (2, "target_modules names `down_proj`, and no tensor is for it"),
    has_more: (2, "model.layers.0.mlp.up_proj is unexpected: it is not among target_modules"),
    saved_unasked: (2, "up_proj.weight is unexpected: adapter_config.json does not name model.layers.0.mlp.up_proj"),
    another_rank: (2, "has rank 8; adapter_config.json says 4"),
    ranks_apart: (2, "does not fit lora_B [64, 8]"),
    another_template: (2, "its chat template is another than in training"),
    pickle_beside: (2, "training_args.bin may be a pickle"),
    secret_inside: (2, "README.md holds an access token"),
    secret_in_the_header: (2, "the header of adapter_model.safetensors holds an access token"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", UNSOUND, ids=lambda one: one.__name__)
def test_check_finds(spoil, run, live):
    folder, _, _ = live()
    spoil(folder)
    code, text = UNSOUND[spoil]
    done = run("check", folder)
    assert done.code == code
    assert text in done.out
    assert done.err.startswith(f"error: {folder}: ")
    assert json.loads(run("check", folder, "--json").out)


def test_all_findings_are_told_and_a_wrong_file_decides_the_code(run, live):
    folder, _, _ = live()
    for spoil in (pickle_beside, secret_inside, not_finite, lacks_one):
        spoil(folder)
    done = run("check", folder)
    assert done.code == 2
    assert done.err == f"error: {folder}: 4 findings above; mend or fetch it again.\n"
    assert [line.split()[0] for line in done.out.splitlines()].count("note") == 1  # the base's folder


def test_an_adapter_whose_whole_modules_were_trained_is_not_inert(live):
    folder, _, _ = live(modules_to_save=["lm_head"])
    inert(folder)
    kinds = [one.kind for one in clinic.check(read_adapter(folder))]
    assert kinds == ["note", "note"]  # no effect of the LoRA; the base's folder


def test_another_base_is_told_by_its_weights_and_shapes(run, live, trained, small_model):
    folder, _, _ = live()
    other = small_model("llama", intermediate_size=96)
    done = run("check", folder, "--base", other)
    assert done.code == 2
    assert f"model.layers.0.mlp.down_proj is for a weight of [64, 128]; that of {other} is [64, 96]" in done.out
    done = run("check", trained, "--base", other)
    assert f"wrong    {other} holds other weights than those of `quickstart/base` that it was trained on" in done.out
    assert "model.layers.2.mlp.down_proj is unexpected" in done.out


def test_a_module_that_the_base_has_and_the_adapter_lacks_is_told(live):
    folder, base, _ = live()
    change(folder, lambda tensors: {name: one for name, one in tensors.items() if "layers.1.mlp.down" not in name})
    assert [one for one in clinic.check(read_adapter(folder)) if one.kind == "wrong"] == []
    [found] = [one.text for one in clinic.check(read_adapter(folder), base) if one.kind == "wrong"]
    assert found == f"model.layers.1.mlp.down_proj is among target_modules, and {WEIGHTS} has no tensors for it"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])  # fmt: skip
def test_finite_and_zero_are_what_torch_says(dtype, tmp_path):
    values = [torch.zeros(5), -torch.zeros(5), torch.tensor([0.0, 448.0]), torch.tensor([1.0, math.nan])]
    values += [torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).tiny], dtype=torch.float64)]
    values += [] if dtype == torch.float8_e4m3fn else [torch.tensor([0.0, -math.inf])]
    for value in values:
        save_file({"x": value.to(dtype)}, tmp_path / "x.safetensors")
        [tensor] = clinic.read_folder_tensors(tmp_path).values()
        expected = bool(value.to(dtype).double().isfinite().all()), not value.to(dtype).double().any()
        assert clinic._finite_and_zero(tensor) == expected
        if dtype.itemsize > 1:
            assert np.array_equal(contents.read_numbers(tensor), value.to(dtype).double().numpy(), equal_nan=True)


# --- somebody else's files -------------------------------------------------------------------------------------------


def write(name, data):
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def header(entry):
    text = json.dumps(entry).encode()
    return len(text).to_bytes(8, "little") + text


MALFORMED = {
    "no such folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "no configuration": (lambda folder: (folder / CONFIG).unlink(), "no adapter here"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "configuration cut off": (write(CONFIG, '{"peft_type": "LO'), "not valid JSON"),
    "configuration too deep": (write(CONFIG, "[" * 200_000), "not valid JSON"),
    "configuration a list": (write(CONFIG, "[]"), "not a JSON object"),
    "configuration not text": (write(CONFIG, b"\xff\xfe"), "not valid JSON"),
    "no method": (write(CONFIG, "{}"), "peft_type is `None`"),
    "rank a text": (lambda folder: edit(folder / CONFIG, r="8"), "r is `8`; expected a whole number above 0"),
    "rank below 1": (lambda folder: edit(folder / CONFIG, r=0), "r is `0`"),
    "alpha not finite": (lambda folder: edit(folder / CONFIG, lora_alpha=math.inf), "lora_alpha is `inf`"),
    "targets a number": (lambda folder: edit(folder / CONFIG, target_modules=3), "target_modules is `3`"),
    "ranks a list": (lambda folder: edit(folder / CONFIG, rank_pattern=[1]), "rank_pattern is `[1]`"),
    "an expression without end": (lambda folder: edit(folder / CONFIG, target_modules="(([a-z_.0-9]*)*)*!"), "do not trust it"),
    "no expression": (lambda folder: edit(folder / CONFIG, target_modules="(("), "is no regular expression"),
    "weights empty": (write(WEIGHTS, b""), "not a safetensors file"),
    "weights a text": (write(WEIGHTS, "version https://git-lfs.github.com/spec/v1"), "not a safetensors file"),
    "a huge header": (write(WEIGHTS, (1 << 60).to_bytes(8, "little") + b"{}"), "not a safetensors file"),
    "a lying header": (write(WEIGHTS, header({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})), "not a safetensors file"),
    "no tensors": (write(WEIGHTS, header({})), "holds no tensors"),
    "a run of nonsense": (write("run.json", "{"), "not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_adapter_is_told_in_one_line(name, run, live):
    folder, _, _ = live()
    spoil, text = MALFORMED[name]
    spoil(folder)
    commands = [["show", folder], ["check", folder], ["pack", folder, "--out", folder.parent / "x.lora.tar.gz"]]
    for command in commands[: 1 if "without end" in name else 3]:
        done = run(*command)
        assert done.code == 2
        assert text in done.err
        assert len(done.err) < 600


@pytest.mark.parametrize("odd", [None, 1e999, "/a/b", [3], {"a": 3}], ids=repr)
def test_odd_values_anywhere_are_no_traceback(odd, run, live, trained, tmp_path):
    """Each field of the configuration, and each section of the record, in turn; run() refuses a traceback."""
    folder, _, _ = live(r=2, target_modules=["q_proj"])
    shutil.copy(trained / "run.json", folder)
    other = shutil.copytree(folder, tmp_path / "other")
    deep = [("metrics", "after"), ("recipe", "adapter"), ("base", "name"), ("data", "train_account")]
    for name in (CONFIG, "run.json"):
        whole = (folder / name).read_text()
        for keys in [(key,) for key in json.loads(whole)] + deep * (name == "run.json"):
            record = json.loads(whole)
            inner = record if len(keys) == 1 else record[keys[0]]
            inner[keys[-1]] = odd
            (folder / name).write_text(json.dumps(record))
            (tmp_path / "p").unlink(missing_ok=True)
            for words in (["show", folder], ["check", folder], ["list", tmp_path], ["diff", other, folder], ["pack", folder, "--out", tmp_path / "p"]):  # fmt: skip
                assert run(*words).code in (0, 2), (keys, words)
        (folder / name).write_text(whole)


@pytest.mark.parametrize("shape", [(), (0,), (8,), (0, 64), (8, 0), (8, 64, 1), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_odd_shapes_are_no_traceback(part, shape, run, live, tmp_path):
    folder, base, _ = live()
    name = f"base_model.model.model.layers.0.self_attn.q_proj.{part}.weight"
    change(folder, lambda tensors: tensors | {name: torch.ones(shape)})
    assert run("show", folder).code == 0
    for words in (
        ["check", folder, "--base", base],
        ["diff", folder, folder],
        ["shrink", folder, "--rank", 2, "--out", tmp_path / "s", "--no-loss"],
        ["pack", folder, "--out", tmp_path / "p"],
        ["convert", folder, "--out", tmp_path / "c", "--base", base],
    ):
        assert run(*words).code in (0, 2), words


def test_a_classifiers_head_is_sound(small_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    base = small_model("llama")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    assert json.loads((tmp_path / "a" / CONFIG).read_text())["modules_to_save"] == ["classifier", "score"]
    assert [one for one in clinic.check(read_adapter(tmp_path / "a"), base) if one.kind != "note"] == []


def test_a_file_that_may_not_be_read_is_told_in_one_line(run, live, monkeypatch):
    folder, _, _ = live()
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / CONFIG)
    assert run("show", folder).code == 2


# --- shrink ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"layers.1.mlp.down_proj": 5}},
        {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["norm"]},
        {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"]},
        {"lora_bias": True, "base_changes": {"attention_bias": True, "mlp_bias": True}},
    ],
    ids=str,
)
def test_an_update_that_has_a_lower_rank_is_shrunk_without_loss(settings, live, run, tmp_path):
    folder, base, _ = live(**({"r": 12, "lora_alpha": 7} | settings))

    def thin(tensors):  # rank 4 at most, in tensors of rank 12
        for name in tensors:
            if name.endswith(("lora_B.weight", "lora_embedding_B")):
                tensors[name][:, 4:] = 0

    change(folder, thin)
    before = plain(folder, base)
    done = run("shrink", folder, "--rank", 4, "--out", tmp_path / "small", "--no-loss")
    assert done.code == 0
    assert "energy kept: 100.0000% of all" in done.out
    assert relative(plain(tmp_path / "small", base), before) < 1e-5
    ranks = {one.shape[0] for name, one in load_file(tmp_path / "small" / WEIGHTS).items() if "lora_A" in name}
    assert max(ranks) == 4
    found = clinic.check(read_adapter(tmp_path / "small"), base)
    assert [one for one in found if one.kind != "note"] == []


def test_shrinking_is_the_best_there_is_and_says_its_energy(live):
    folder, _, _ = live()
    made = surgery.shrink(read_adapter(folder), 3)
    weights = load_file(folder / WEIGHTS)
    kept = whole = 0.0
    for name in weights:
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            full = 2 * weights[other].double() @ weights[name].double()
            u, s, v = torch.linalg.svd(full)
            best = (u[:, :3] * s[:3]) @ v[:3]
            assert relative((made.tensors[other].double() @ made.tensors[name].double()), best) < 1e-6
            kept, whole = kept + float((s[:3] ** 2).sum()), whole + float((s**2).sum())
    assert made.kept()[""] == pytest.approx(kept / whole, rel=1e-9)


def test_a_run_is_shrunk_with_its_files_and_losses(trained, run, tmp_path):
    done = run("shrink", trained, "--rank", 4, "--out", tmp_path / "small")
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "small/run.json").read_text())
    assert record["made_from"]["shrunk_from"] == trained.name
    assert record["recipe"]["adapter"]["rank"] == 4
    assert record["metrics"]["after"] is None
    loss = record["made_from"]["loss"]
    assert f"loss on 32 rows: {loss['before']:.4f} before, {loss['after']:.4f} after" in done.out
    base = json.loads((trained / "run.json").read_text())["metrics"]
    assert loss["before"] < loss["after"] < base["before"]["eval_loss"]
    assert "Shrunk from rank 16 to 4" in (tmp_path / "small/README.md").read_text()
    assert (tmp_path / "small/tokenizer.json").read_bytes() == (trained / "tokenizer.json").read_bytes()
    assert f"shrunk_from {trained.name}, rank 16" in run("show", tmp_path / "small").out
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Hello!", "answer": "Hello!"}\n')
    done = run("shrink", trained, "--rank", 15, "--out", tmp_path / "large", "--data", rows)
    assert "loss on 1 rows: " in done.out


def test_what_would_lose_something_is_not_shrunk(live, run, tmp_path):
    dora, _, _ = live("dora", use_dora=True)
    small, _, _ = live("small")
    loha = shutil.copytree(small, tmp_path / "loha")
    edit(loha / CONFIG, peft_type="LOHA")
    (tmp_path / "there").mkdir()
    for folder, out, rank, text in (
        (dora, "x", 2, "is DoRA, whose update is not B A alone"),
        (loha, "x", 2, "is LOHA, whose update is not B A alone"),
        (small, "x", 8, "its rank is 8; --rank must be below it"),
        (small, "there", 2, "is there already. Choose another --out"),
    ):
        done = run("shrink", folder, "--rank", rank, "--out", tmp_path / out, "--no-loss")
        assert done.code == 2
        assert text in done.err
        assert not (tmp_path / "x").exists()


def test_a_shrink_that_fails_leaves_nothing(live, run, tmp_path, monkeypatch):
    folder, _, _ = live()
    from lorasmith.export import adapter_folder

    monkeypatch.setattr(
        adapter_folder, "write_card", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error", "x"))
    )
    before = set(tmp_path.iterdir())
    done = run("shrink", folder, "--rank", 2, "--out", tmp_path / "new", "--no-loss")
    assert (done.code, done.err) == (2, "error: x: Input/output error.\n")
    assert set(tmp_path.iterdir()) == before


# --- extract ---------------------------------------------------------------------------------------------------------


def merged(folder, base, out):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).merge_and_unload()
    model.save_pretrained(out)
    shutil.copy(base / "tokenizer.json", out)
    return model


@pytest.mark.parametrize(
    ("kind", "targets"), [("llama", ["q_proj", "up_proj"]), ("gpt2", ["c_attn", "c_fc"]), ("llama", "all-linear")]
)
def test_a_merged_lora_is_found_again(kind, targets, live, run, tmp_path):
    folder, base, before = live(kind=kind, r=4, target_modules=targets)
    merged(folder, base, tmp_path / "full")
    done = run("extract", tmp_path / "full", "--base", base, "--rank", 4, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "% of all" in done.out
    assert relative(plain(tmp_path / "out", base), before) < 1e-4
    assert relative(plain(tmp_path / "out", base), before) < 0.01 * relative(before, logits(base))
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert set(config["target_modules"]) == set(targets if targets != "all-linear" else ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])  # fmt: skip
    assert run("check", tmp_path / "out", "--base", base).code == 0
    assert (tmp_path / "out/tokenizer.json").exists()


def logits(base):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(base).eval()(input_ids=IDS).logits.double()


def test_a_rank_beyond_a_matrix_and_shards_and_bf16_are_handled(live, run, tmp_path):
    folder, base, _ = live(r=4)
    model = merged(folder, base, tmp_path / "whole")
    with torch.no_grad():
        model.lm_head.weight.add_(0.1 * torch.randn_like(model.lm_head.weight))
        after = model.eval()(input_ids=IDS).logits.double()
    model.save_pretrained(tmp_path / "full", max_shard_size="100KB")
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 1
    assert run("extract", tmp_path / "full", "--base", base, "--rank", 100, "--out", tmp_path / "out").code == 0
    assert relative(plain(tmp_path / "out", base), after) < 1e-4
    model.bfloat16().save_pretrained(tmp_path / "half")
    done = run("extract", tmp_path / "half", "--base", base, "--rank", 8, "--out", tmp_path / "out2", "--ignore-rest")
    assert done.code == 0
    assert "left out: model.embed_tokens.weight, relative difference 1." in done.out


@pytest.mark.parametrize("tied", [False, True])
def test_norms_embeddings_and_biases_are_saved_whole_or_refused(tied, live, run, tmp_path):
    changes = {"attention_bias": True, "tie_word_embeddings": tied}
    folder, base, _ = live(r=4, base_changes=changes)
    model = merged(folder, base, tmp_path / "whole")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "1.input_layernorm.weight", "0.self_attn.v_proj.bias")):
                weight.add_(0.2 * torch.randn_like(weight))
        after = model.eval()(input_ids=IDS).logits.double()
    model.save_pretrained(tmp_path / "full")
    words = ["extract", tmp_path / "full", "--base", base, "--rank", 4, "--out", tmp_path / "out"]
    done = run(*words)
    assert done.code == 2
    assert f"{4 if tied else 3} tensors differ that no LoRA can hold" in done.err
    assert not (tmp_path / "out").exists()
    done = run(*words, "--save-rest")
    assert done.code == 0, done.err
    assert relative(plain(tmp_path / "out", base), after) < 1e-4
    done = run(*words[:-1], tmp_path / "without", "--ignore-rest")
    assert "left out: model.layers.1.input_layernorm.weight" in done.out
    assert relative(plain(tmp_path / "without", base), after) > 1e-3


def test_a_large_matrix_is_cut_by_chance_as_well_as_exactly():
    torch.manual_seed(0)
    delta = torch.randn(700, 5) @ torch.randn(5, 900) + 0.01 * torch.randn(700, 900)
    before = torch.random.get_rng_state()
    u, s, v = surgery._singular(delta, 8)
    assert torch.equal(torch.random.get_rng_state(), before)
    b, a, kept = surgery._halves(u, s, v, 8)
    exact = torch.linalg.svd(delta)
    assert relative(b @ a, (exact[0][:, :8] * exact[1][:8]) @ exact[2][:8]) < 5e-3
    assert kept == pytest.approx(float((exact[1][:8].double() ** 2).sum()), rel=1e-4)
    torch.rand(3)
    again = surgery._singular(delta, 8)
    assert torch.equal(again[1], s)


def test_what_is_no_model_and_its_base_is_refused(live, run, small_model, tmp_path):
    _, base, _ = live()
    other = small_model("llama", intermediate_size=96)
    fewer = small_model("llama", num_hidden_layers=1)
    quantized = shutil.copytree(base, tmp_path / "quantized")
    change_file = load_file(quantized / "model.safetensors")
    change_file["model.norm.weight"] = change_file["model.norm.weight"].to(torch.uint8)
    save_file(change_file, quantized / "model.safetensors", metadata={"format": "pt"})
    unknown = shutil.copytree(base, tmp_path / "unknown")
    edit(unknown / "config.json", model_type="evil", architectures=["pipeline"])
    for full, of, text in (
        (other, base, "model and base must have the same shapes"),
        (fewer, base, "they are no model and its base"),
        (base, base, "no linear layer differs"),
        (quantized, base, "give weights that are not quantized"),
        (base, unknown, "transformers cannot build this model"),
        (tmp_path, base, "no weights as safetensors here"),
    ):
        done = run("extract", full, "--base", of, "--rank", 4, "--out", tmp_path / "out")
        assert done.code == 2
        assert text in done.err
        assert not (tmp_path / "out").exists()


# --- convert ---------------------------------------------------------------------------------------------------------


def without_prefix(name):
    return name.removeprefix("base_model.model.")


def with_the_adapters_name(name):
    for part in ("lora_A", "lora_B"):
        name = name.replace(f"{part}.weight", f"{part}.default.weight")
    for part in ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
        name = f"{name}.default" if name.endswith(part) else name
    return name.replace("norm.weight", "norm.modules_to_save.default.weight")


def from_ddp(name):
    return f"module.{with_the_adapters_name(name)}".replace("layers", "_orig_mod.layers")


def moved(name):
    return name.replace("base_model.model.model.", "base_model.model.language_model.model.")


OLDER = [
    {"rank_pattern": {"layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"model.layers.1.mlp.down_proj": 3}},
    {"use_dora": True, "modules_to_save": ["model.norm"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
]
RENAMES = [(without_prefix, False), (with_the_adapters_name, False), (from_ddp, False), (without_prefix, True), (with_the_adapters_name, True), (from_ddp, True), (moved, True)]  # fmt: skip


@pytest.mark.parametrize(("rename", "needs_base"), RENAMES, ids=lambda one: getattr(one, "__name__", str(one)))
@pytest.mark.parametrize("settings", OLDER, ids=str)
def test_an_older_layout_becomes_todays(settings, rename, needs_base, live, run, tmp_path):
    folder, base, before = live(**settings)
    change(folder, lambda tensors: {rename(name): one for name, one in tensors.items()})
    done = run("convert", folder, "--out", tmp_path / "new", *(["--base", base] if needs_base else []))
    assert done.code == 0, done.err
    assert "renamed: " in done.out
    assert relative(plain(tmp_path / "new", base), before) < 1e-6
    assert [one for one in clinic.check(read_adapter(tmp_path / "new"), base) if one.kind != "note"] == []


def test_targets_and_patterns_follow_modules_that_moved(live, run, tmp_path):
    targets = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    folder, base, before = live(target_modules=targets, rank_pattern={targets[0]: 2}, alpha_pattern={targets[1]: 3})
    change(folder, lambda tensors: {moved(name): one for name, one in tensors.items()})
    old = {name: f"language_model.{name}" for name in targets}
    edit(folder / CONFIG, target_modules=list(old.values()), rank_pattern={old[targets[0]]: 2}, alpha_pattern={old[targets[1]]: 3})  # fmt: skip
    done = run("convert", folder, "--out", tmp_path / "new", "--base", base)
    for key in ("target_modules", "rank_pattern", "alpha_pattern"):
        assert f"{key} names the modules anew, in full" in done.out
    assert relative(plain(tmp_path / "new", base), before) < 1e-6


def test_a_name_with_no_or_two_meanings_is_refused(live, run, tmp_path):
    folder, base, _ = live()
    change(folder, lambda tensors: {name.replace("q_proj", "wq"): one for name, one in tensors.items()})
    done = run("convert", folder, "--out", tmp_path / "new", "--base", base)
    assert done.code == 2
    assert "the base has no such module" in done.err
    folder, base, _ = live("two")
    change(
        folder, lambda tensors: tensors | {with_the_adapters_name(name): one.clone() for name, one in tensors.items()}
    )
    done = run("convert", folder, "--out", tmp_path / "new")
    assert done.code == 2
    assert "It holds more than one adapter" in done.err


@pytest.mark.parametrize("ending", ["bin", "pt", "ckpt"])
def test_a_pickle_becomes_safetensors(ending, live, run, tmp_path):
    folder, base, before = live()
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({"state_dict": tensors, "epoch": 3} if ending == "ckpt" else tensors, folder / f"adapter_model.{ending}")
    assert f"adapter.py convert {folder} --out DIR" in run("show", folder).err
    done = run("convert", folder, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert relative(plain(tmp_path / "new", base), before) < 1e-6
    assert [path.suffix for path in (tmp_path / "new").iterdir()].count(".safetensors") == 1


class Trap:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_hostile_pickle_does_not_run(legacy, live, run, tmp_path):
    folder, _, _ = live()
    (folder / WEIGHTS).unlink()
    torch.save(
        {"x": Trap(tmp_path / "sprung")}, folder / "adapter_model.bin", _use_new_zipfile_serialization=not legacy
    )
    for words in (["convert", folder, "--out", tmp_path / "new"], ["convert", folder / "adapter_model.bin", "--out", tmp_path / "new"]):  # fmt: skip
        done = run(*words)
        assert done.code == 2
        assert "refused; it is no pickle of tensors alone" in done.err
    assert not (tmp_path / "sprung").exists()
    torch.load(folder / "adapter_model.bin", weights_only=False)  # the control: it would have sprung
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("prefix", ["lora_te_", "lora_unet_"])
def test_kohyas_layout_becomes_pefts(prefix, live, run, tmp_path):
    folder, base, before = live(rank_pattern={"q_proj": 3}, alpha_pattern={"layers.1.mlp.down_proj": 5})
    adapter = read_adapter(folder)
    made = {}
    for module, names in adapter.parts().items():
        key = prefix + module.replace(".", "_")
        made[f"{key}.lora_down.weight"] = load_file(folder / WEIGHTS)[names["lora_A"]]
        made[f"{key}.lora_up.weight"] = load_file(folder / WEIGHTS)[names["lora_B"]]
        made[f"{key}.alpha"] = torch.tensor(adapter.alpha(module))
    save_file(made, tmp_path / "k.safetensors")
    done = run("convert", tmp_path / "k.safetensors", "--base", base, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert "alpha / rank = 0.625 folded into lora_B" in done.out
    assert relative(plain(tmp_path / "new", base), before) < 1e-5
    done = run("convert", tmp_path / "k.safetensors", "--out", tmp_path / "other")
    assert done.code == 2
    assert "Say where it is with --base" in done.err


def test_kohya_files_that_are_unclear_are_refused(live, run, tmp_path):
    _, base, _ = live()
    key = "model_layers_0_self_attn_q_proj"
    pair = {"lora_down.weight": torch.ones(2, 64), "lora_up.weight": torch.ones(64, 2)}
    for made, text in (
        ({f"{p}_{key}.{n}": t for p in ("lora_te", "lora_unet") for n, t in pair.items()}, "Choose one with --part"),
        ({f"lora_te_{key}.lora_down.weight": pair["lora_down.weight"]}, "lacks lora_down or lora_up"),
        ({f"lora_te_nowhere.{n}": t for n, t in pair.items()}, "the base has no such module"),
        ({f"lora_te_{key}.{n}": t for n, t in pair.items()} | {f"lora_te_{key}.dora_scale": torch.ones(1)}, "is of a kind that is not converted"),
    ):  # fmt: skip
        save_file({name: one.clone() for name, one in made.items()}, tmp_path / "k.safetensors")
        done = run("convert", tmp_path / "k.safetensors", "--base", base, "--out", tmp_path / "new")
        assert done.code == 2
        assert text in done.err


def test_weights_alone_need_their_alpha(live, run, tmp_path):
    folder, base, before = live()
    shutil.copy(folder / WEIGHTS, tmp_path / "weights.safetensors")
    done = run("convert", tmp_path / "weights.safetensors", "--out", tmp_path / "new")
    assert done.code == 2
    assert "Give its lora_alpha with --alpha" in done.err
    done = run("convert", tmp_path / "weights.safetensors", "--out", tmp_path / "new", "--alpha", "16", "--base", base)
    assert done.code == 0, done.err
    assert relative(plain(tmp_path / "new", base), before) < 1e-6


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04N."])
def test_what_holds_no_tensors_is_not_converted(data, run, tmp_path):
    (tmp_path / "x.pt").write_bytes(data)
    assert run("convert", tmp_path / "x.pt", "--out", tmp_path / "new").code == 2
    assert run("convert", tmp_path / "nowhere", "--out", tmp_path / "new").code == 2
    torch.save([torch.ones(1)], tmp_path / "x.pt")
    assert run("convert", tmp_path / "x.pt", "--out", tmp_path / "new").code == 2


# --- pack, unpack ----------------------------------------------------------------------------------------------------


def names_in(path):
    with tarfile.open(path) as tar:
        return tar.getnames()


def test_a_parcel_brings_back_the_same_adapter(trained, run, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "run")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / WEIGHTS).write_bytes(b"x")
    torch.save({}, folder / "training_args.bin")
    file = tmp_path / "p.lora.tar.gz"
    done = run("pack", folder, "--out", file)
    assert done.code == 0, done.err
    names = names_in(file)
    assert names[0] == "manifest.json"
    assert names[1:] == sorted(names[1:])
    wanted = {WEIGHTS, CONFIG, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md", "run.json", "recipe.yaml", "metrics.jsonl", "template_contract.json", "audit.json", "plots/loss.png"}  # fmt: skip
    assert wanted <= set(names)
    assert not any(part in name for name in names for part in ("private", "checkpoint", ".bin", ".html", "status"))
    first = file.read_bytes()
    file.unlink()
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    run("pack", folder, "--out", file)
    assert file.read_bytes() == first
    assert run("pack", folder, "--out", file).code == 2
    done = run("unpack", file, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    for name in (WEIGHTS, CONFIG, "tokenizer.json", "chat_template.jinja", "template_contract.json"):
        assert (tmp_path / "new" / name).read_bytes() == (trained / name).read_bytes()
    assert torch.equal(plain(tmp_path / "new", BASE), plain(trained, BASE))
    assert run("check", tmp_path / "new", "--base", BASE).code == 0
    done = run("unpack", file, "--out", tmp_path / "new")
    assert done.code == 2
    assert "is there already" in done.err


def test_paths_and_secrets_stay_here(live, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    folder, base, _ = live()
    (folder / "README.md").write_text(f"---\nbase_model: {base}\n---\nFrom /home/somebody/rows/a.jsonl, hf_{'aB3' * 12}, correct-horse-battery\n")  # fmt: skip
    (folder / "run.json").write_text(json.dumps({"base": {"folder": str(base), "name": str(base)}, "recipe": {"data": {"train": "/data/x/rows.jsonl"}}}))  # fmt: skip
    (folder / "recipe.yaml").write_text(f"model:\n  name: {base}\ndata:\n  train: /data/x/rows.jsonl\n")
    done = run("pack", folder, "--out", tmp_path / "p.lora.tar.gz")
    assert done.code == 0, done.err
    for name in ("README.md", "run.json", "recipe.yaml", CONFIG):
        assert f"{name}: the paths of this machine were cut to their last name" in done.out
    assert "README.md: an access token was removed from it" in done.out
    assert run("unpack", tmp_path / "p.lora.tar.gz", "--out", tmp_path / "new").code == 0
    assert json.loads((tmp_path / "new" / CONFIG).read_text())["base_model_name_or_path"] == base.name
    assert (tmp_path / "new/README.md").read_text() == f"---\nbase_model: {base.name}\n---\nFrom a.jsonl, {leaks.REMOVED}, {leaks.REMOVED}\n"  # fmt: skip
    assert (tmp_path / "new/recipe.yaml").read_text() == f"model:\n  name: {base.name}\ndata:\n  train: rows.jsonl\n"
    assert str(base) in (folder / CONFIG).read_text()
    everything = b"".join(path.read_bytes() for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in everything
    assert b"correct-horse" not in everything


def test_what_is_unsound_or_leaks_is_not_packed(live, run, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    (tmp_path / "thesis.md").write_text("private")

    def outside(folder):
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "README.md").symlink_to(tmp_path / "thesis.md")

    def in_the_vocabulary(folder):
        (folder / "tokenizer.json").write_text("correct-horse-battery")

    for number, (spoil, text) in enumerate(
        [
            (inert, "inert"),
            (not_finite, "not finite"),
            (lacks_one, "lacks lora_B"),
            (outside, "out of the adapter's folder"),
            (in_the_vocabulary, "holds an access token where it cannot be removed"),
            (secret_in_the_header, "the header of"),
        ]
    ):
        folder, _, _ = live(f"live{number}")
        spoil(folder)
        done = run("pack", folder, "--out", tmp_path / "p.lora.tar.gz")
        assert done.code == 2
        assert text in done.err
    assert not list(tmp_path.glob("p.lora*"))


def make_parcel(path, members, manifest=None):
    """A tar file of (name or TarInfo, data), behind a manifest that is right unless one is given."""
    if manifest is None:
        import hashlib

        listed = {
            n: {"sha256": hashlib.sha256(d).hexdigest(), "bytes": len(d)} for n, d in members if isinstance(n, str)
        }
        manifest = json.dumps({"files": listed}).encode()
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw) as packed, tarfile.open(fileobj=packed, mode="w") as tar:  # fmt: skip
        for name, data in [("manifest.json", manifest), *members]:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def special(name, kind, target=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


TWO = [(CONFIG, b"{}"), (WEIGHTS, b"x")]


def unlisted(name):
    return special(name, tarfile.REGTYPE)


HOSTILE = {
    "a symbolic link": ([(special("README.md", tarfile.SYMTYPE, "/etc/passwd"), b"")], "is a link, folder or device"),
    "a hard link": ([(special("README.md", tarfile.LNKTYPE, CONFIG), b"")], "is a link, folder or device"),
    "a device": ([(special("README.md", tarfile.CHRTYPE), b"")], "is a link, folder or device"),
    "a pipe": ([(special("README.md", tarfile.FIFOTYPE), b"")], "is a link, folder or device"),
    "a folder": ([(special("plots", tarfile.DIRTYPE), b"")], "is a link, folder or device"),
    "an absolute name": ([(unlisted("/tmp/README.md"), b"x")], "does not belong into a parcel"),
    "an absolute name in the manifest": ([("/tmp/README.md", b"x")], "manifest.json lists `/tmp/README.md`"),
    "a name outside": ([(unlisted("../README.md"), b"x")], "does not belong into a parcel"),
    "a name outside in the manifest": ([("../README.md", b"x")], "manifest.json lists `../README.md`"),
    "a name outside, deeper": ([(unlisted("plots/../../README.md"), b"x")], "does not belong into a parcel"),
    "a name that pack never gives": ([(unlisted("evil.py"), b"x")], "does not belong into a parcel"),
    "a pickle": ([(unlisted("adapter_model.bin"), b"x")], "does not belong into a parcel"),
    "a private file": ([(unlisted("private/eval_rows.jsonl"), b"x")], "does not belong into a parcel"),
    "a name twice": ([(CONFIG, b"{}")], "is in it twice"),
    "a name twice in other letters": ([("plots/A.png", b"x"), ("plots/a.png", b"x")], "is in it twice"),
    "a file unlisted": ([(unlisted("README.md"), b"x")], "is not as manifest.json says"),
    "a second manifest": ([(unlisted("manifest.json"), b"{}")], "is in it twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_parcel_is_refused(name, run, tmp_path):
    members, reason = HOSTILE[name]
    make_parcel(tmp_path / "p.lora.tar.gz", [*TWO, *members])
    done = run("unpack", tmp_path / "p.lora.tar.gz", "--out", tmp_path / "new")
    assert done.code == 2
    assert "refused (" in done.err
    assert reason in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.lora.tar.gz"]


def entry(data, size=None, digest=None):
    import hashlib

    return {"sha256": digest or hashlib.sha256(data).hexdigest(), "bytes": len(data) if size is None else size}


MANIFESTS = {
    "another content": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"y")},
    "another size": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"x", size=2)},
    "more than there is": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"x"), "README.md": entry(b"x")},
    "less than there is": {CONFIG: entry(b"{}")},
    "a size below 0": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"x", size=-1)},
    "a size of terabytes": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"x", size=1 << 42)},
    "no sizes": {CONFIG: 1, WEIGHTS: 2},
    "names outside": {CONFIG: entry(b"{}"), WEIGHTS: entry(b"x"), "../x": entry(b"x")},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_parcel_that_is_not_as_its_manifest_says_is_refused(name, run, tmp_path):
    make_parcel(tmp_path / "p.lora.tar.gz", TWO, json.dumps({"files": MANIFESTS[name]}).encode())
    done = run("unpack", tmp_path / "p.lora.tar.gz", "--out", tmp_path / "new")
    assert done.code == 2
    assert "refused (" in done.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("manifest", [b"", b"[]", b"[" * 100_000, b'{"files": 3}', b"\xff"])
def test_a_parcel_with_a_broken_manifest_is_refused(manifest, run, tmp_path):
    make_parcel(tmp_path / "p.lora.tar.gz", TWO, manifest)
    assert "refused (" in run("unpack", tmp_path / "p.lora.tar.gz", "--out", tmp_path / "new").err


def test_a_parcel_that_unpacks_without_end_is_refused_in_time(run, tmp_path, monkeypatch):
    monkeypatch.setattr(parcel, "SPARE", 1 << 20)
    data = bytes(16 << 20)
    make_parcel(tmp_path / "p.lora.tar.gz", [(CONFIG, b"{}"), (WEIGHTS, data)])
    assert "far more than its own size" in run("unpack", tmp_path / "p.lora.tar.gz", "--out", tmp_path / "new").err
    long_name = special("x" * (8 << 20), tarfile.REGTYPE)
    with tarfile.open(tmp_path / "q.lora.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(long_name)
    assert "far more than its own size" in run("unpack", tmp_path / "q.lora.tar.gz", "--out", tmp_path / "new").err


def test_a_damaged_parcel_is_refused_wherever_it_is_cut_or_changed(trained, run, tmp_path):
    whole = tmp_path / "p.lora.tar.gz"
    assert run("pack", trained, "--out", whole).code == 0
    data = whole.read_bytes()
    damaged = tmp_path / "d.lora.tar.gz"
    for at in (0, 5, 100, len(data) // 2, len(data) - 20):
        for spoilt in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
            damaged.write_bytes(spoilt)
            done = run("unpack", damaged, "--out", tmp_path / "new")
            if at == 5:  # the time in gzip's header, which nothing depends on
                shutil.rmtree(tmp_path / "new", ignore_errors=True)
                continue
            assert done.code == 2, at
            assert not (tmp_path / "new").exists()
    damaged.write_bytes(b"not gzip")
    assert run("unpack", damaged, "--out", tmp_path / "new").code == 2
    assert run("unpack", tmp_path / "nowhere.lora.tar.gz", "--out", tmp_path / "new").code == 2


# --- push, pull ------------------------------------------------------------------------------------------------------


def test_an_adapter_travels_through_a_storage(live, run, tmp_path):
    folder, base, before = live()
    done = run("push", folder, f"file://{tmp_path}/store/deep")
    assert done.code == 0, done.err
    address = f"file://{tmp_path}/store/deep/live.lora.tar.gz"
    assert f"pushed: {address}" in done.out
    assert [path.name for path in (tmp_path / "store/deep").iterdir()] == ["live.lora.tar.gz"]
    assert "is there already" in run("push", folder, f"file://{tmp_path}/store/deep").err
    assert run("pull", address, "--out", tmp_path / "new").code == 0
    assert relative(plain(tmp_path / "new", base), before) < 1e-6
    assert run("push", folder, "memory://bucket/x.lora.tar.gz").code == 0
    assert run("pull", "memory://bucket/x.lora.tar.gz", "--out", tmp_path / "again").code == 0


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("s3://bucket/folder", "pip install s3fs"),
        ("nonsense://x", "Protocol not known"),
        ("just-a-name", "expected a hub id (org/name)"),
        ("/absolute/folder", "expected a hub id (org/name)"),
        ("a/b/c", "expected a hub id (org/name)"),
        ("org/name", "not reached (OfflineModeIsEnabled"),
        ("file:///proc/no/where", "not reached ("),
    ],
)
def test_an_address_that_does_not_do_is_told_in_one_line(address, text, live, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    folder, _, _ = live()
    done = run("push", folder, address)
    assert done.code == 2
    assert text in done.err


def test_a_password_in_an_address_is_not_said(live, run):
    folder, _, _ = live()
    done = run("push", folder, "nonsense://me:hunter2@host/x")
    assert "hunter2" not in done.err + done.out
    assert "nonsense://host/x" in done.err


def test_pull_wants_a_parcel(run, tmp_path):
    assert "expected a parcel" in run("pull", "memory://bucket/folder", "--out", tmp_path / "new").err
    assert "not reached" in run("pull", "memory://bucket/no.lora.tar.gz", "--out", tmp_path / "new").err


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's functions over a folder; what was asked of it is kept."""
    import huggingface_hub

    kept = types.SimpleNamespace(folder=tmp_path / "hub", private=None)

    def create_repo(repo_id, private, exist_ok):
        kept.private = private if kept.private is None else kept.private

    def upload_folder(repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, kept.folder)

    def snapshot_download(repo_id, local_dir, allow_patterns):
        shutil.copytree(kept.folder, local_dir, dirs_exist_ok=True)
        (tmp_path / "asked").write_text(json.dumps(allow_patterns))

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "repo_info", lambda repo_id: types.SimpleNamespace(private=kept.private))
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return kept


def test_an_adapter_travels_through_the_hub(live, run, hub, tmp_path):
    folder, base, before = live()
    (folder / "private").mkdir()
    (folder / "private/eval_rows.jsonl").write_text("mine")
    done = run("push", folder, "me/mine")
    assert done.code == 0, done.err
    assert hub.private is True
    assert "pushed: https://huggingface.co/me/mine" in done.out
    assert {path.name for path in hub.folder.iterdir()} == {"manifest.json", "README.md", CONFIG, WEIGHTS}
    assert str(base) not in (hub.folder / CONFIG).read_text()
    (hub.folder / "README.md").write_text("edited on the hub")
    (hub.folder / "evil.py").write_text("x")
    assert run("pull", "me/mine", "--out", tmp_path / "new").code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"README.md", CONFIG, WEIGHTS}
    assert relative(plain(tmp_path / "new", base), before) < 1e-6
    assert "evil.py" not in (tmp_path / "asked").read_text()
    inert(hub.folder)
    done = run("pull", "me/mine", "--out", tmp_path / "other")
    assert done.code == 2
    assert f"{WEIGHTS} is not as manifest.json says" in done.err
    (hub.folder / WEIGHTS).unlink()
    assert "no adapter as safetensors is there" in run("pull", "me/mine", "--out", tmp_path / "other").err
    assert not (tmp_path / "other").exists()


def test_nothing_goes_to_a_public_repository_unasked(live, run, hub):
    folder, _, _ = live()
    hub.private = False
    done = run("push", folder, "me/mine")
    assert done.code == 2
    assert "everybody can see this repository" in done.err
    assert not hub.folder.exists()
    assert run("push", folder, "me/mine", "--public").code == 0


def test_the_hubs_errors_are_one_line(live, run, hub, monkeypatch):
    import huggingface_hub

    def refused(**_):
        raise RuntimeError("401 Client Error.\nRepository not found")

    monkeypatch.setattr(huggingface_hub, "upload_folder", refused)
    folder, _, _ = live()
    done = run("push", folder, "me/mine")
    assert done.code == 2
    assert "Log in with: hf auth login." in done.err


# --- all of them -----------------------------------------------------------------------------------------------------


def test_every_command_is_explained_in_one_line():
    done = subprocess.run([sys.executable, "scripts/adapter.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    for name in ("show", "check", "diff", "shrink", "extract", "convert", "pack", "unpack", "push", "pull", "list"):
        assert f"\n    {name} " in done.stdout


def test_layouts_refuse_what_only_looks_like_peft(tmp_path):
    save_file({"model.layers.0.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(LorasmithError, match="there is no lora_A among its tensors"):
        layouts.convert(tmp_path / "x.safetensors", None, None, 8.0)
