"""Somebody else's files: nothing of them runs, nothing is written outside, nothing leaks, nothing hangs."""

import contextlib
import gzip
import json
import os
import pickle
import shutil
import time

import pytest
import torch
import yaml
from conftest import NO_EVAL, ROOT, launch, sft, write_rows
from safetensors.torch import load_file

from lorasmith import leaks, models
from lorasmith.console import plain
from lorasmith.data.audit import marked
from lorasmith.data.files import records
from lorasmith.data.formats import read_rows
from lorasmith.data.render import TokenRow
from lorasmith.errors import DataError, LorasmithError, ModelError, RecipeError
from lorasmith.recipe import Model, load_recipe
from lorasmith.reliability import checkpoints
from lorasmith.runs.opening import open_model

pytestmark = pytest.mark.scorecard(row="R15")
ROWS = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 8


class Trap:
    """Its pickle touches a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sprung(tmp_path):
    """Where a trap leaves its mark; nothing may, when the test is over."""
    path = tmp_path / "sprung"
    yield path
    assert not path.exists()


def trap_code(sprung):
    return f"import os\nos.mkdir({str(sprung)!r})\n"


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- models and adapters that bring code -----------------------------------------------------------------------------


def base_with_code(folder, sprung):
    edit(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"})  # fmt: skip
    (folder / "evil.py").write_text(trap_code(sprung))


def base_of_a_known_kind_with_code(folder, sprung):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.M"})
    (folder / "evil.py").write_text(trap_code(sprung))


def tokenizer_with_code(folder, sprung):
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.T", "evil.T"]})
    (folder / "evil.py").write_text(trap_code(sprung))


def generation_with_code(folder, sprung):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(trap_code(sprung))


def pickled_weights(folder, sprung):
    (folder / "model.safetensors").unlink()
    torch.save(Trap(sprung), folder / "pytorch_model.bin")


def pickle_named_safetensors(folder, sprung):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))


def pickled_shards(folder, sprung):
    (folder / "model.safetensors").unlink()
    torch.save(Trap(sprung), folder / "part.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(["model.norm.weight"], "part.bin")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def kernel_from_the_hub(folder, sprung):
    edit(folder / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel")


def huge_header(folder, sprung):
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")


def lying_header(folder, sprung):
    header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())


BASES = [
    base_with_code, base_of_a_known_kind_with_code, tokenizer_with_code, generation_with_code, pickled_weights,
    pickle_named_safetensors, pickled_shards, kernel_from_the_hub, huge_header, lying_header,
]  # fmt: skip


@pytest.mark.parametrize("spoil", BASES, ids=lambda one: one.__name__)
def test_nothing_of_a_hostile_base_runs(spoil, sprung, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(ROOT / "quickstart/base", folder)
    spoil(folder, sprung)
    with contextlib.suppress(LorasmithError):  # refused, or loaded without its code; anything else is a bug
        section = Model(name=str(folder))
        tokenizer, _ = models.load_tokenizer(section)
        model = models.load_base_model(section, "float32", "sdpa", "cpu")
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, eos_token_id=None, pad_token_id=0)
        assert tokenizer
        assert spoil in (base_of_a_known_kind_with_code, tokenizer_with_code, generation_with_code, kernel_from_the_hub)


def pickled_adapter(folder, sprung):
    (folder / "adapter_model.safetensors").unlink()
    torch.save(Trap(sprung), folder / "adapter_model.bin")


def pickle_named_adapter(folder, sprung):
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))


def adapter_with_a_module_to_import(folder, sprung):
    (folder / "evil.py").write_text(trap_code(sprung))
    edit(folder / "adapter_config.json", auto_mapping={"base_model_class": "X", "parent_library": "evil"})


def adapter_of_an_unknown_kind(folder, sprung):
    edit(folder / "adapter_config.json", peft_type="EVIL")


def adapter_whose_base_is_elsewhere(folder, sprung):
    edit(folder / "adapter_config.json", base_model_name_or_path="../../../etc")


def adapter_whose_run_trusts_code(folder, sprung):
    base = folder.parent / "evil-base"
    shutil.copytree(ROOT / "quickstart/base", base)
    base_with_code(base, sprung)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(base))
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["model"] |= {"trust_remote_code": True, "name": str(base)}
    run["base"]["fingerprint"] = models.weight_fingerprint(base)
    (folder / "run.json").write_text(json.dumps(run))


def adapter_whose_run_names_a_kernel(folder, sprung):
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["model"]["attention"] = "evil/kernel"
    (folder / "run.json").write_text(json.dumps(run))


def adapter_whose_run_is_nonsense(folder, sprung):
    run = json.loads((folder / "run.json").read_text())
    run["recipe"]["model"]["quantization"] = "$(touch x)"
    (folder / "run.json").write_text(json.dumps(run))


def adapter_with_a_pickle_beside_it(folder, sprung):
    for name in ("training_args.bin", "optimizer.pt", "adapter_model.bin"):
        torch.save(Trap(sprung), folder / name)


def adapter_with_a_regular_expression_without_end(folder, sprung):
    edit(folder / "adapter_config.json", target_modules="(([a-z_.0-9]*)*)*!")


ADAPTERS = [
    pickled_adapter, pickle_named_adapter, adapter_with_a_module_to_import, adapter_of_an_unknown_kind,
    adapter_whose_base_is_elsewhere, adapter_whose_run_trusts_code, adapter_whose_run_names_a_kernel,
    adapter_whose_run_is_nonsense, adapter_with_a_pickle_beside_it, adapter_with_a_regular_expression_without_end,
]  # fmt: skip
HARMLESS = (adapter_with_a_module_to_import, adapter_whose_run_names_a_kernel, adapter_with_a_pickle_beside_it)


@pytest.mark.parametrize("spoil", ADAPTERS, ids=lambda one: one.__name__)
def test_nothing_of_a_hostile_adapter_runs(spoil, sprung, trained, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(trained, folder)
    spoil(folder, sprung)
    if spoil in HARMLESS:
        assert open_model(str(folder), None, None).model
    else:
        with pytest.raises(LorasmithError):
            open_model(str(folder), None, None)


# --- chat templates --------------------------------------------------------------------------------------------------

FOR = "{% for a in range(90000) %}"
END = "{% endfor %}"
TEMPLATES = {
    "loops": f"{FOR}{FOR}{FOR}{END}{END}{END}",
    "loops for long conversations": f"{{% if messages|length > 30 %}}{FOR}{FOR}{END}{END}{{% endif %}}",
    "a text of 100 GB": "{{ 'a' * 100000000000 }}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "a list that grows": f"{{% set n = namespace(x=[1]) %}}{FOR}{{% set n.x = n.x + n.x %}}{END}",
    "a number of digits": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "padding": "{{ '%10000000000d' % 1 }}",
}
ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.mkdir('SPRUNG') }}",
    "lipsum": "{{ lipsum.__globals__['os'].mkdir('SPRUNG') }}",
    "attr": "{{ ''|attr('__class__')|attr('__mro__') }}",
    "format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as x %}",
    "raise": "{{ raise_exception.__globals__['os'].mkdir('SPRUNG') }}",
    "changes": "{{ messages.append(messages) }}{{ messages.clear() }}",
}


def with_template(template, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(template)
    return models.load_tokenizer(Model(name=str(ROOT / "quickstart/base"), chat_template=str(file)))[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_without_end_is_refused_in_time(name, tmp_path):
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"its chat template takes more than (2 s|64 MB) for a short conversation"):
        with_template(TEMPLATES[name], tmp_path)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", ESCAPES)
def test_a_template_does_not_leave_its_sandbox(name, sprung, tmp_path):
    tokenizer = with_template(ESCAPES[name].replace("SPRUNG", str(sprung)), tmp_path)
    messages = [{"role": "user", "content": "Hi"}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:
        return
    assert "class" not in text
    assert "root:" not in text
    assert messages == [{"role": "user", "content": "Hi"}]


def test_a_real_template_is_within_the_limits(tmp_path):
    assert models.load_tokenizer(Model(name=str(ROOT / "quickstart/base")))[0].chat_template


# --- recipes and rows ------------------------------------------------------------------------------------------------

NINE = "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
RECIPES = {
    "code": "model: !!python/object/apply:os.mkdir ['SPRUNG']\n",
    "code in a key": "!!python/name:os.system : 1\n",
    "aliases without end": f"a: &a [x, x, x, x, x, x, x, x, x]\n{NINE}\n",
    "an alias of itself": "a: &a [*a]\n",
    "depth": "a: " + "[" * 100_000,
    "size": "a: " + "x" * (2 << 20),
    "a number of a million digits": "seed: " + "1" * 1_000_000,
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused_at_once(name, sprung, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(RECIPES[name].replace("SPRUNG", str(sprung)))
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [])
    assert time.monotonic() - start < 30
    assert len(str(caught.value)) < 1000


def test_a_recipe_cannot_empty_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    with pytest.raises(LorasmithError, match="is not empty and holds no run"):
        sft("recipes/quickstart.yaml", f"output_dir={tmp_path}/home", "--overwrite")
    assert (tmp_path / "home/thesis.txt").exists()


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_file_that_unpacks_without_end_is_refused(ending, tmp_path):
    path = tmp_path / f"r.{ending}.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(160):
            file.write(bytes(1 << 20))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"unpacks to over 500 times its size|a line of more than 64 MiB"):
        list(records(str(path)))
    assert time.monotonic() - start < 60


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "r.jsonl")
    with pytest.raises(DataError, match="a pipe or device"):
        list(records(str(tmp_path / "r.jsonl")))


def test_a_data_folder_with_a_script_is_read_without_it(sprung, tmp_path):
    (tmp_path / "rows").mkdir()
    write_rows(tmp_path / "rows/a.jsonl", *ROWS)
    (tmp_path / "rows/rows.py").write_text(trap_code(sprung))
    assert len(read_rows(str(tmp_path / "rows")).rows) == 8


def test_rows_do_not_steer_the_terminal_or_the_page(tmp_path):
    tokenizer = models.load_tokenizer(Model(name=str(ROOT / "quickstart/base")))[0]
    ids = tokenizer("\x1b]0;owned\x07\x1b[2J\u009b2J<script>alert(1)</script>", add_special_tokens=False)["input_ids"]
    from array import array

    text = marked(tokenizer, TokenRow("x", array("i", ids), array("i", ids)))
    assert not any(ord(one) < 32 or 0x7F <= ord(one) < 0xA0 for one in text)
    assert plain("a\x1b[2Jb\n") == "a␛[2Jb\n"
    from lorasmith.data.audit import write_audit

    write_audit(tmp_path, tokenizer, [TokenRow("x", array("i", ids), array("i", ids))], {}, "")
    page = next(tmp_path.rglob("audit.html")).read_text()
    assert "<script>alert" not in page


# --- checkpoints whose manifest was forged ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    words = ["recipes/quickstart.yaml", *NO_EVAL, f"output_dir={folder}", "trainer.max_steps=4", "model.quantization=none"]  # fmt: skip
    done = launch("scripts/sft.py", *words, "run.max_minutes=0.0001")
    assert done.returncode == 75, done.stderr
    return folder, words


@pytest.mark.parametrize(
    "name",
    [
        "optimizer.pt",
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("scheduler.pt", "rng_state.pth", "adapter_model.safetensors")
        ),
    ],
)
def test_a_pickle_in_a_checkpoint_does_not_run(name, interrupted, sprung, tmp_path):
    master, words = interrupted
    folder = tmp_path / "run"
    shutil.copytree(master, folder)
    checkpoint = folder / "checkpoint-1"
    torch.save(Trap(sprung), checkpoint / name)
    checkpoints.commit(checkpoint)
    done = launch("scripts/sft.py", *words, f"output_dir={folder}")
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# --- secrets ---------------------------------------------------------------------------------------------------------

SHAPED = {
    "hub": "hf_" + "aB3" * 12,
    "openai": "sk-proj-" + "x1Y" * 10,
    "github": "ghp_" + "a1B2" * 9,
    "aws": "AKIA" + "ABCD1234" * 2,
    "key": "-----BEGIN RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize("name", SHAPED)
def test_what_is_shaped_like_a_secret_is_removed_from_records(name, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"note": f"token {SHAPED[name]}"}))
    (tmp_path / "private").mkdir()
    (tmp_path / "private/eval_rows.jsonl").write_text(SHAPED[name])
    assert leaks.clean_folder(tmp_path) == ["run.json: an access token was removed from it"]
    assert json.loads((tmp_path / "run.json").read_text()) == {"note": f"token {leaks.REMOVED}"}
    assert (tmp_path / "private/eval_rows.jsonl").read_text() == SHAPED[name]
    assert leaks.clean_folder(tmp_path) == []


def test_this_processs_own_secrets_are_removed_from_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "correct-horse-battery")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    (tmp_path / "private").mkdir()
    (tmp_path / "private/log.txt").write_text("401 for correct-horse-battery, true\n")
    (tmp_path / "weights.bin").write_bytes(b"\0correct-horse-battery\0")
    lines = leaks.clean_folder(tmp_path)
    assert lines == ["private/log.txt: an access token was removed from it", "weights.bin holds an access token; do not share it"]  # fmt: skip
    assert (tmp_path / "private/log.txt").read_text() == f"401 for {leaks.REMOVED}, true\n"


def test_an_error_tells_no_secret(monkeypatch, tmp_path):
    canary = "canary-canary-canary"
    done = launch("scripts/sft.py", "recipes/quickstart.yaml", f"model.name=./{canary}", HF_TOKEN=canary)
    assert done.returncode == 2
    assert leaks.REMOVED in done.stderr
    assert canary not in done.stderr + done.stdout


def test_a_path_below_home_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "adapter_config.json").write_text(yaml.safe_dump({"base": "/home/somebody/models/base"}))
    assert leaks.clean_folder(tmp_path) == [
        "adapter_config.json names a path below /home/somebody; look at it before you share it"
    ]


def test_the_trap_works(tmp_path):
    """The control: loaded without care, it springs."""
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert (tmp_path / "sprung").exists()
    assert load_file(ROOT / "quickstart/base/model.safetensors")
