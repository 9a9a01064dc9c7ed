"""The recipe layer: strict, fast, and every refusal in one line that says where, what and what to do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, launch

from lorasmith.errors import RecipeError
from lorasmith.recipe import json_schema, load_recipe
from lorasmith.recipe_sections import recipe_text

GOOD = """\
model:
  name: quickstart/base
  quantization: nf4
adapter:
  rank: 16
  alpha: 32
data:
  train: quickstart/data/train.jsonl
run:
  effective_batch: 16
output_dir: adapters/test
seed: 42
trainer:
  learning_rate: 2e-4
  max_length: 128
"""

# (what is replaced, by what, the refusal without the file's name). F33 of the reliability catalogue.
BAD = {
    "unknown section": ("adapter:", "adaptor:", "4: unknown key `adaptor`. Did you mean `adapter`?"),
    "unknown key": ("  rank: 16", "  rnak: 16", "5: adapter: unknown key `rnak`. Did you mean `rank`?"),
    "unknown trainer key": (
        "  max_length: 128",
        "  max_seq_length: 128",
        "15: trainer: unknown key `max_seq_length`. Did you mean `max_length`?",
    ),
    "fraction for a whole number": ("rank: 16", "rank: 16.5", "5: adapter.rank is `16.5`; expected a whole number."),
    "text for a whole number": ("rank: 16", "rank: '16'", "5: adapter.rank is `'16'`; expected a whole number."),
    "true for a whole number": ("rank: 16", "rank: true", "5: adapter.rank is `true`; expected a whole number."),
    "zero rank": ("rank: 16", "rank: 0", "5: adapter.rank is `0`; expected a number of at least 1."),
    "negative alpha": ("alpha: 32", "alpha: -1", "6: adapter.alpha is `-1`; expected a number above 0."),
    "text for a number": ("alpha: 32", "alpha: lots", "6: adapter.alpha is `lots`; expected a number."),
    "infinite number": ("alpha: 32", "alpha: .inf", "6: adapter.alpha is `inf`; expected a finite number."),
    "unknown quantization": (
        "nf4",
        "nf5",
        "3: model.quantization is `nf5`; expected one of none, int8, nf4, fp4. Did you mean `nf4`?",
    ),
    "an order that is not repeated": (
        "  max_length: 128",
        "  train_sampling_strategy: batch_rebalance",
        "15: trainer.train_sampling_strategy is `batch_rebalance`, whose order is not repeated by a resumed run. Use random, "
        "sequential or group_by_length.",
    ),
    "code that may change": (
        "quickstart/base\n  quantization: nf4",
        "org/model\n  trust_remote_code: true",
        "3: model.trust_remote_code runs code from the hub, and model.revision is `main`, which can change. Set "
        "model.revision to the commit (40 hex digits) that you have read.",
    ),
    "a kernel from the hub": (
        "  quantization: nf4",
        "  attention: kernels/flash",
        "3: model.attention is `kernels/flash`, code from the hub. If you trust it, set model.trust_remote_code: true.",
    ),
    "unknown method": ("rank: 16", "method: doar", "5: adapter.method is `doar`; no such method. Did you mean `dora`?"),
    "owned peft option": (
        "rank: 16",
        "options: {r: 8}",
        "5: adapter.options.r is not set here. Set adapter.rank.",
    ),
    "unknown peft option": (
        "rank: 16",
        "options: {rank_patern: {}}",
        "5: adapter.options: unknown key `rank_patern`. Did you mean `rank_pattern`?",
    ),
    "dropout of one": ("rank: 16", "dropout: 1.0", "5: adapter.dropout is `1.0`; expected a number below 1."),
    "empty targets": (
        "rank: 16",
        "target_modules: []",
        "5: adapter.target_modules is `[]`; expected a name or a list of names.",
    ),
    "loftq without quantization": (
        "  quantization: nf4\nadapter:\n  rank: 16",
        "adapter:\n  method: loftq",
        "4: adapter.method is `loftq`; it needs model.quantization nf4 or fp4.",
    ),
    "duplicate key": ("  alpha: 32", "  rank: 8", "6: `adapter.rank` is given twice (first on line 5)."),
    "duplicate section": ("seed: 42", "data: {}", "12: `data` is given twice (first on line 7)."),
    "missing model name": (
        "  name: quickstart/base\n",
        "",
        "1: `model.name` is missing; expected a hub id or local folder.",
    ),
    "missing data": (
        "data:\n  train: quickstart/data/train.jsonl\n",
        "",
        "1: `data` is missing; expected keys: train.",
    ),
    "missing output": (
        "output_dir: adapters/test\n",
        "",
        "1: `output_dir` is missing; expected a folder such as adapters/my-run.",
    ),
    "empty value": ("adapters/test", "", "11: output_dir is `null`; expected text."),
    "section as a value": (
        "run:\n  effective_batch: 16",
        "run: fast",
        "9: run is `fast`; expected keys and values.",
    ),
    "zero batch": ("batch: 16", "batch: 0", "10: run.effective_batch is `0`; expected a number of at least 1."),
    "micro-batch that does not divide": (
        "effective_batch: 16",
        "effective_batch: 16\n  micro_batch: 5",
        "11: run.micro_batch is `5`; expected a divisor of run.effective_batch (16).",
    ),
    "micro-batch of another kind": (
        "effective_batch: 16",
        "micro_batch: some",
        "10: run.micro_batch is `some`; expected a whole number above 0, or auto.",
    ),
    "two kinds of evaluation rows": (
        "train.jsonl",
        "train.jsonl\n  eval: a.jsonl\n  eval_fraction: 0.1",
        "10: data.eval and data.eval_fraction are both given; keep one.",
    ),
    "negative learning rate": (
        "2e-4",
        "-1e-4",
        "14: trainer.learning_rate is `-0.0001`; expected a number above 0 and at most 1.",
    ),
    "learning rate as text": ("2e-4", "fast", "14: trainer.learning_rate is `fast`; expected a number."),
    "learning rate not a number": ("2e-4", ".nan", "14: trainer.learning_rate is `nan`; expected a finite number."),
    "batch in the trainer": (
        "  max_length: 128",
        "  per_device_train_batch_size: 4",
        "15: trainer.per_device_train_batch_size is not set here. Set run.micro_batch and run.effective_batch.",
    ),
    "a secret": (
        "  max_length: 128",
        "  hub_token: hf_x",
        "15: trainer.hub_token is not set here. Secrets do not belong in a recipe. Log in with: hf auth login.",
    ),
    "accumulation in the trainer": (
        "  max_length: 128",
        "  gradient_accumulation_steps: 4",
        "15: trainer.gradient_accumulation_steps is not set here. "
        "It follows from run.effective_batch and run.micro_batch.",
    ),
    "text for true or false": (
        "  max_length: 128",
        "  bf16: yes",
        "15: trainer.bf16 is `yes`; expected true or false.",
    ),
    "unknown schedule": (
        "  max_length: 128",
        "  lr_scheduler_type: cosin",
        "15: trainer.lr_scheduler_type is `cosin`; expected one of linear, cosine, cosine_with_restarts, polynomial, "
        "constant, constant_with_warmup, inverse_sqrt, reduce_lr_on_plateau, cosine_with_min_lr, "
        "cosine_warmup_with_min_lr, warmup_stable_decay, greedy. Did you mean `cosine`?",
    ),
    "unknown optimizer": (
        "  max_length: 128",
        "  optim: adamw_trch",
        "15: trainer.optim is `adamw_trch`; expected a name that transformers knows. Did you mean `adamw_torch`?",
    ),
    "evaluation without rows": (
        "  max_length: 128",
        "  eval_strategy: epoch",
        "15: trainer.eval_strategy needs rows to evaluate on. Set data.eval or data.eval_fraction.",
    ),
    "packing that mixes rows": (
        "  max_length: 128",
        "  packing: true\n  packing_strategy: wrapped",
        "16: trainer.packing_strategy is `wrapped`; it mixes rows. Use bfd.",
    ),
    "template that is no template": (
        "  quantization: nf4",
        "  chat_template: chatlm",
        "3: model.chat_template is `chatlm`; expected chatml or a .jinja file.",
    ),
    "broken YAML": ("  rank: 16", "  rank: [16", "6: not valid YAML (expected ',' or ']', but got ':')."),
    "tab": ("  rank: 16", "\trank: 16", "5: not valid YAML (found character '\\t' that cannot start any token)."),
    "python tag": (
        "rank: 16",
        "rank: !!python/name:os.system",
        "5: tag `tag:yaml.org,2002:python/name:os.system` is not allowed. Write a plain value.",
    ),
    "merge key": ("  rank: 16", "  <<: {rank: 8}", "5: merge keys (`<<`) are not allowed. Write the keys out."),
}


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_recipe_is_refused_in_one_exact_line(case, tmp_path):
    old, new, refusal = BAD[case]
    assert old in GOOD
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [])
    assert str(caught.value) == f"{recipe}:{refusal}"


BAD_FILES = {
    "empty": (b"", "1: the recipe is empty; expected sections such as `model:` and `data:`."),
    "a list": (b"- 1\n", "1: the recipe is `[1]`; expected sections such as `model:` and `data:`."),
    "not UTF-8": (b"seed: 1\nmodel: \xff\n", "2: not UTF-8 text. Save the recipe as UTF-8."),
}


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_recipe_is_refused_in_one_exact_line(case, tmp_path):
    content, refusal = BAD_FILES[case]
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [])
    assert str(caught.value) == f"{recipe}:{refusal}"


@pytest.mark.scorecard(row="R6")
@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("trainer.learning_rat=1", "command line: trainer: unknown key `learning_rat`. Did you mean `learning_rate`?"),
        ("adapter.rank=a", "command line: adapter.rank is `a`; expected a whole number."),
        ("seed", "command line: `seed` is not `section.key=value`, such as trainer.learning_rate=1e-4."),
        ("seed.x=1", "command line: seed.x: `seed` is a value, not a section."),
        ("seed=[1", "command line: not valid YAML (expected ',' or ']', but got '<stream end>')."),
    ],
)
def test_a_bad_override_names_the_command_line(override, refusal, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD)
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [override])
    assert str(caught.value) == refusal


def test_numbers_and_words_are_read_as_yaml_1_2(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD.replace("2e-4", "1e-4\n  eval_strategy: no\n  run_name: 2024-01-01"))
    trainer = load_recipe(recipe, ["seed=007", "trainer.warmup_steps=.5"]).trainer
    assert trainer["learning_rate"] == 1e-4
    assert trainer["eval_strategy"] == "no"
    assert trainer["run_name"] == "2024-01-01"
    assert trainer["warmup_steps"] == 0.5


def test_an_override_wins_over_the_file_and_the_last_one_over_the_first(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(GOOD)
    assert load_recipe(recipe, ["adapter.rank=4", "adapter.rank=8"]).adapter.rank == 8


def test_a_recipe_written_out_reads_back_as_itself(tmp_path):
    recipe = load_recipe(Path("recipes/quickstart.yaml"), ["trainer.learning_rate=1e-5", "adapter.options.bias=none"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(recipe_text(recipe))
    assert load_recipe(copy, []) == recipe


def test_the_recipe_layer_imports_neither_torch_nor_trl():
    program = (
        "import sys; from pathlib import Path; from lorasmith.recipe import load_recipe; "
        "load_recipe(Path('recipes/quickstart.yaml'), []); "
        "print([m for m in ('torch', 'trl', 'transformers', 'peft', 'datasets', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", ["scripts/sft.py"])
def test_a_typo_ends_the_script_with_one_line_and_exit_code_2(script):
    done = launch(script, "recipes/quickstart.yaml", "trainer.learning_rat=1e-4")
    assert done.returncode == 2
    assert done.stderr == ("error: command line: trainer: unknown key `learning_rat`. Did you mean `learning_rate`?\n")


def test_a_missing_recipe_says_where_recipes_are():
    done = launch("scripts/sft.py", "recipes/nope.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: recipes/nope.yaml: no such recipe. Recipes to start from are in recipes/.\n"


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_the_schema_in_the_repository_is_current(method):
    stored = json.loads(Path(f"recipes/{method}.schema.json").read_text())
    assert stored == json_schema(method), "run: make schema"


def test_every_recipe_points_editors_to_the_schema():
    for path in sorted(Path("recipes").rglob("*.yaml")):
        first = path.read_text().splitlines()[0]
        prefix = "# yaml-language-server: $schema="
        assert first.startswith(prefix), path
        kind = "prepare" if path.parent.name == "prepare" else "sft"
        assert (path.parent / first.removeprefix(prefix)).resolve() == Path(f"recipes/{kind}.schema.json").resolve()


def test_a_key_that_takes_words_or_numbers_is_refused_by_its_own_name():
    with pytest.raises(
        RecipeError, match=r"run.gradient_checkpointing is `5`; expected one of auto, offload, 2, 3, 4\.$"
    ):
        load_recipe(ROOT / "recipes/quickstart.yaml", ["run.gradient_checkpointing=5"])
