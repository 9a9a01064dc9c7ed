"""The plan: exact shapes, memory within 5 % of what is measured, ways that fit, and no torch."""

import itertools
import json
import shutil
from dataclasses import replace

import pytest
from conftest import ROOT, launch, load_benchmark

from lorasmith.data.lengths import sampled_rows
from lorasmith.errors import FitError, ModelError
from lorasmith.memory import facts, fit, machine
from lorasmith.memory.lengths import with_length
from lorasmith.memory.methods import METHODS
from lorasmith.memory.peak import Setting, plan_memory
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows
from lorasmith.memory.shapes import DECODERS, UnknownArchitectureError, read_shape
from lorasmith.memory.weights import GIB, base_bytes
from lorasmith.recipe import load_recipe
from lorasmith.recipe_file import read_recipe, rewrite
from lorasmith.recipe_method import method_of

RECIPES = [
    ROOT / "recipes/quickstart.yaml",
    *(path for one in METHODS for path in sorted((ROOT / "recipes" / one).glob("*.yaml"))),
]
SFT_RECIPES = [path for path in RECIPES if path.parent.name in ("recipes", "sft")]
ONE_OF_EACH = {path.parent: path for path in RECIPES if path not in SFT_RECIPES}.values()  # other method
SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 320,
    "max_position_embeddings": 128,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}
CONFIGS = {
    "llama": [SMALL | GROUPED, SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}],
    "mistral": [SMALL | GROUPED | {"head_dim": 24}],
    "ministral": [SMALL | GROUPED | {"head_dim": 16}],
    "qwen2": [SMALL | GROUPED],
    "qwen3": [SMALL | GROUPED | {"head_dim": 32, "tie_word_embeddings": True}, SMALL | {"attention_bias": True, "head_dim": 16}],
    "gemma": [SMALL | GROUPED | {"head_dim": 16}],
    "gemma2": [SMALL | GROUPED | {"head_dim": 16}],
    "gemma3_text": [SMALL | GROUPED | {"head_dim": 16}],
    "smollm3": [SMALL | GROUPED | {"pad_token_id": 0}],
    "phi3": [SMALL | GROUPED | {"pad_token_id": 0}],
    "granite": [SMALL | GROUPED],
    "olmo2": [SMALL | GROUPED],
    "starcoder2": [SMALL | GROUPED, SMALL | {"use_bias": False}],
    "gpt2": [{"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 128, "vocab_size": 320}],
    "gpt_neox": [SMALL, SMALL | {"attention_bias": False}],
    "mixtral": [SMALL | GROUPED | {"num_local_experts": 4}],
    "qwen3_moe": [SMALL | GROUPED | {"head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32}],
}  # fmt: skip


def grid():
    """benchmarks/memory_grid.py as a module."""
    return load_benchmark("memory_grid")


def a_setting(shape, **changes):
    plain = {"quantization": "none", "dtype": "bfloat16", "rank": 16, "longest": 512, "supervised": 512}
    return Setting(targets=shape.targets("all-linear"), adapted_layers=shape.layers, **(plain | changes))


def rows(length, count=64):
    return Rows([length] * count, count, length, length, 0, "made up")


def test_every_decoder_that_the_plan_knows_is_compared_here():
    assert set(CONFIGS) == set(DECODERS)


@pytest.mark.parametrize(("kind", "config"), [(k, c) for k, some in CONFIGS.items() for c in some])
def test_shapes_are_those_of_the_real_model(kind, config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config))
    shape = read_shape({"model_type": kind, **config})
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    block = model.get_submodule(f"{shape.path}.0")
    found = {}
    for name, module in block.named_modules():
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.in_features, module.out_features, module.bias is not None)
        elif isinstance(module, Conv1D):
            found[name] = (module.nx, module.nf, module.bias is not None)
    assert {one.name: (one.inputs, one.outputs, one.bias) for one in shape.linears} == found


def test_the_facts_add_up_to_the_published_numbers_of_parameters():
    for name, config in facts.known_models().items():
        assert read_shape(config).parameters == config["parameters"], name


def test_every_shipped_recipe_names_a_model_of_the_facts():
    for path in RECIPES:
        name = load_recipe(path, [], method_of(path)).model.name
        assert name in facts.known_models() | facts.task_models() or (ROOT / name).is_dir()


def test_an_unknown_architecture_and_a_broken_config_are_told():
    with pytest.raises(UnknownArchitectureError, match="the plan does not know `mamba` models"):
        read_shape({"model_type": "mamba"})
    with pytest.raises(ModelError, match="sizes below 1"):
        read_shape({"model_type": "llama", "num_hidden_layers": 0})
    with pytest.raises(ModelError, match="not a whole llama config"):
        read_shape({"model_type": "llama", "hidden_size": None})


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_the_base_is_counted_to_the_byte(small_model, quantization):
    from lorasmith import models
    from lorasmith.recipe import Model

    folder = small_model("qwen3")
    model = models.load_base_model(Model(name=str(folder), quantization=quantization), "bfloat16", "sdpa", "cpu")
    shape = read_shape(json.loads((folder / "config.json").read_text()))
    expected = base_bytes(shape, a_setting(shape, quantization=quantization))
    rotary = sum(b.untyped_storage().nbytes() for b in model.buffers())
    assert expected == pytest.approx(grid().held_bytes(model) - rotary, rel=2e-3)


CELLS = [
    {"model": "llama"},
    {"model": "qwen3", "quantization": "nf4", "length": 1024},
    {"model": "llama", "quantization": "int8", "micro_batch": 2},
    {"model": "gemma3", "length": 1024, "checkpointing": True},
    {"model": "llama", "micro_batch": 4, "padded": True},
    {"model": "llama-wide", "quantization": "nf4", "length": 256, "micro_batch": 2},
    {"model": "llama", "accumulation": 4, "rank": 128, "optim": "adamw_torch"},
    {"model": "qwen3", "dtype": "bfloat16", "length": 1024, "checkpointing": True},
    {"model": "llama", "method": "dora"},
    {"model": "llama", "length": 256, "evaluate": 4096},
]


@pytest.mark.parametrize("cell", CELLS[:3], ids=str)
def test_memory_is_within_5_percent_of_what_a_training_takes(cell):
    found = grid()
    measured = found.measure(found.Cell(**cell), "cpu")
    assert abs(measured["error"]) <= 0.05, measured


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS[3:], ids=str)
def test_memory_is_within_5_percent_of_what_other_trainings_take(cell):
    test_memory_is_within_5_percent_of_what_a_training_takes(cell)


LARGE = [name for name in facts.known_models() if "70B" not in name]


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_more_tokens_rank_or_layers_never_plan_less(device):
    for name, quantization, recompute in itertools.product(LARGE, ("none", "nf4"), ("none", "all")):
        shape = read_shape(facts.known_models()[name])
        plain = a_setting(shape, quantization=quantization, checkpointing=recompute, device=device)
        sizes = [plan_memory(shape, replace(plain, longest=n, supervised=n)).total for n in (1, 64, 512, 2048, 8192)]
        sizes_by_batch = [plan_memory(shape, replace(plain, micro_batch=n)).total for n in (1, 2, 4, 16)]
        by_rank = [plan_memory(shape, replace(plain, rank=n)).total for n in (1, 8, 64, 256)]
        deeper = [replace(shape, layers=shape.layers + n) for n in range(3)]
        by_depth = [plan_memory(one, replace(plain, adapted_layers=one.layers)).total for one in deeper]
        for one in (sizes, sizes_by_batch, by_rank, by_depth):
            assert one == sorted(one), (name, quantization, recompute)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_checkpointing_and_4_bit_never_plan_more(device):
    # 8 bit can: bitsandbytes keeps each layer's input besides.
    for name, length, batch in itertools.product(LARGE, (64, 512, 4096), (1, 8)):
        shape = read_shape(facts.known_models()[name])
        plain = a_setting(shape, longest=length, supervised=length, micro_batch=batch, device=device)
        size = {
            (kind, recompute): plan_memory(shape, replace(plain, quantization=kind, checkpointing=recompute)).total
            for kind, recompute in itertools.product(("none", "int8", "nf4"), ("none", "all", "offload"))
        }
        for kind in ("none", "int8", "nf4"):
            assert size[kind, "none"] >= size[kind, "all"] >= size[kind, "offload"]
        for recompute in ("none", "all", "offload"):
            assert min(size["none", recompute], size["int8", recompute]) >= size["nf4", recompute], name


@pytest.mark.parametrize("path", [*SFT_RECIPES, *ONE_OF_EACH], ids=lambda path: path.stem)
def test_a_shipped_recipe_is_planned_without_torch(path):
    code = (
        "import runpy, sys; sys.argv = ['plan.py', sys.argv[1], '--gpu', '16', '--max'];"
        "\ntry: runpy.run_path('scripts/plan.py', run_name='__main__')"
        "\nexcept SystemExit as end: print('exit', end.code)"
        "\nassert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = launch("-c", code, path)
    assert done.returncode == 0, done.stderr
    assert "GiB" in done.stdout
    assert "  longest row" in done.stdout or "  longest completion" in done.stdout


@pytest.mark.parametrize("gib", [8, 12, 16, 24])
def test_a_recipe_fits_the_card_that_it_is_named_for(gib):
    for path in RECIPES:
        if path.stem.endswith(f"-{gib}gb"):
            method = method_of(path)
            recipe = load_recipe(path, [], method)
            shape = read_shape(*facts.find_config(recipe.model.name))
            settled, _ = with_length(recipe, shape.positions, method)
            longest = sampled_rows(recipe if method == "grpo" else settled, method)
            assert make_plan(settled, shape, longest, machine.a_card(gib), method=method).fits, path


def test_what_does_not_fit_is_told_with_the_changes_that_mend_it():
    recipe = load_recipe(
        ROOT / "recipes/sft/llama-3.1-8b-qlora-16gb.yaml", ["model.quantization=none", "run.micro_batch=8"]
    )
    shape = read_shape(*facts.find_config(recipe.model.name))
    plan = make_plan(recipe, shape, rows(2048), machine.a_card(12))
    assert not plan.fits
    error = plan.error()
    assert isinstance(error, FitError)
    assert error.exit_code == 3
    assert "\n" not in str(error)
    assert plan.proposals
    for proposal in plan.proposals:
        assert proposal.memory.total <= plan.machine.budget
        assert proposal.text() in "".join([plan.proposals[0].text(), *(p.text() for p in plan.proposals)])
        for key in proposal.overrides:  # none is larger than it must be
            fewer = [f"{k}={v}" for k, v in proposal.texts().items() if k != key]
            undone = load_recipe(
                ROOT / "recipes/sft/llama-3.1-8b-qlora-16gb.yaml",
                ["model.quantization=none", "run.micro_batch=8", "run.gradient_checkpointing=false", *fewer],
            )
            assert not make_plan(undone, shape, rows(2048), machine.a_card(12)).fits, (proposal.text(), key)


def test_auto_takes_the_fastest_that_fits():
    recipe = load_recipe(ROOT / "recipes/sft/qwen3-0.6b-qlora-6gb.yaml", ["run.micro_batch=auto"])
    shape = read_shape(*facts.find_config(recipe.model.name))
    speeds = []
    for gib in (4, 6, 8, 12, 24, 80):
        plan = make_plan(recipe, shape, rows(1024), replace(machine.a_card(24), budget=gib * GIB))
        assert plan.fits
        speeds.append(plan.speed)
        work = fit.Workload(shape, [1024] * 64, 16, plan.machine.rate)
        for micro, kind in itertools.product(fit.micro_batches(16), ("none", "all", "offload")):
            other = fit.with_batch(plan.setting, micro, 16, checkpointing=kind)
            if plan_memory(shape, other).total <= plan.machine.budget:
                assert work.speed(other) <= plan.speed / 0.97 + 1e-6
    assert all(later >= 0.97 * max(speeds[: i + 1]) for i, later in enumerate(speeds))


def test_a_recipe_that_does_not_fit_becomes_one_that_does_and_trains(tmp_path):
    path = tmp_path / "tight.yaml"
    text = (ROOT / "recipes/quickstart.yaml").read_text()
    text = text.replace("  micro_batch: 16\n", "  micro_batch: 16  # too many\n  gradient_checkpointing: false\n")
    path.write_text(text.replace("quantization: nf4", "quantization: none"))
    before = launch("scripts/plan.py", path, "--gpu", "0.53")
    assert before.returncode == 3, before.stdout + before.stderr
    assert len(before.stderr.strip().splitlines()) == 1
    assert path.read_text().count("# too many") == 1
    written = launch("scripts/plan.py", path, "--gpu", "0.53", "--write")
    assert written.returncode == 0, written.stderr
    after = launch("scripts/plan.py", path, "--gpu", "0.53")
    assert after.returncode == 0, after.stderr
    trained = launch(
        "scripts/sft.py", path, f"output_dir={tmp_path}/run", "trainer.max_steps=2", "trainer.eval_strategy=no"
    )
    assert trained.returncode == 0, trained.stderr


def test_a_recipe_is_rewritten_in_place_with_its_comments(tmp_path):
    path = tmp_path / "r.yaml"
    shutil.copy(ROOT / "recipes/quickstart.yaml", path)
    wanted = {
        "run.micro_batch": "2",
        "trainer.optim": "adamw_8bit",
        "run.gradient_checkpointing": "true",
        "adapter.options.bias": "none",
    }
    rewrite(path, wanted)
    expected, _ = read_recipe(ROOT / "recipes/quickstart.yaml", [f"{key}={value}" for key, value in wanted.items()])
    assert read_recipe(path, [])[0] == expected
    assert path.read_text().startswith((ROOT / "recipes/quickstart.yaml").read_text()[:200])
    flow = tmp_path / "flow.yaml"
    flow.write_text("model: {name: quickstart/base}\ndata: {train: x}\nrun: {micro_batch: 8}\noutput_dir: out\n")
    rewrite(flow, {"run.micro_batch": "1", "trainer.optim": "sgd"})
    assert read_recipe(flow, [])[0] == {
        "model": {"name": "quickstart/base"}, "data": {"train": "x"}, "run": {"micro_batch": 1}, "output_dir": "out",
        "trainer": {"optim": "sgd"},
    }  # fmt: skip


def test_a_run_that_cannot_fit_stops_before_the_weights(tmp_path):
    base = tmp_path / "huge"
    shutil.copytree(ROOT / "quickstart/base", base)
    for weights in base.glob("*.safetensors"):
        weights.unlink()  # reading them would be another error
    huge = {
        "model_type": "llama",
        "hidden_size": 16384,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "vocab_size": 128256,
    }
    (base / "config.json").write_text(json.dumps(huge | {"intermediate_size": 53248, "num_key_value_heads": 8}))
    done = launch("scripts/sft.py", "recipes/quickstart.yaml", f"model.name={base}", f"output_dir={tmp_path}/run")
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "the run needs" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_run_records_what_was_planned_and_measured(trained):
    run = json.loads((trained / "run.json").read_text())
    assert run["memory"]["predicted_gib"] == pytest.approx(run["memory"]["measured_gib"], rel=0.15)
    assert run["plan"]["parts_gib"]["base"] > 0
    assert run["recipe"]["run"]["gradient_checkpointing"] is False


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "many"], "--gpu is `many`"),
        (["--gpus", "2by24"], "--gpus is `2by24`"),
        (["run.gradient_checkpointing=sometimes"], "run.gradient_checkpointing"),
        (["trainer.gradient_checkpointing=true"], "Set run.gradient_checkpointing"),
        (["model.name=./nowhere"], "no such file"),
        (["model.name=nobody/nothing"], "out of reach"),
    ],
)
def test_wrong_words_to_the_plan_are_one_line_and_exit_2(words, said):
    done = launch("scripts/plan.py", "recipes/quickstart.yaml", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_cards_share_the_batch():
    one = launch("scripts/plan.py", "recipes/quickstart.yaml", "--gpu", "24", "run.micro_batch=auto")
    two = launch("scripts/plan.py", "recipes/quickstart.yaml", "--gpus", "2x24", "run.micro_batch=auto")
    assert one.returncode == two.returncode == 0
    assert "DDP over 2" in two.stdout
    assert "DDP" not in one.stdout


def test_the_doctor_tells_what_is_here():
    done = launch("scripts/doctor.py", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    findings = {one["what"]: one for one in json.loads(done.stdout)}
    assert findings["nf4"]["state"] == findings["int8"]["state"] == findings["sdpa attention"]["state"] == "good"
    assert findings["hub"]["mend"] == "unset HF_HUB_OFFLINE"
    assert "torch" in findings
    assert "transformers" in findings


def test_the_doctor_ends_with_2_when_something_must_be_mended(tmp_path):
    broken = tmp_path / "bitsandbytes"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise OSError('libbitsandbytes_cpu.so: cannot open')")
    done = launch("scripts/doctor.py", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "bitsandbytes fails (libbitsandbytes_cpu.so: cannot open)" in done.stdout
    assert "pip install --force-reinstall --no-deps bitsandbytes" in done.stdout


def test_the_grids_own_quantization_is_that_of_from_pretrained(small_model):
    import torch
    from transformers import AutoModelForCausalLM

    from lorasmith import models
    from lorasmith.recipe import Model

    folder = small_model("llama")
    ids = torch.arange(3, 40)[None]
    for kind in ("nf4", "int8"):
        loaded = models.load_base_model(Model(name=str(folder), quantization=kind), "float32", "sdpa", "cpu")
        made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        grid().quantize_in_place(made, models.quantization_config(kind, torch.float32), "cpu")
        models.keep_4bit_layers_unpacked(made)
        with torch.no_grad():
            assert torch.allclose(loaded(ids).logits, made(ids).logits, atol=1e-5 if kind == "nf4" else 1e-2)
        assert grid().held_bytes(made) == grid().held_bytes(loaded)
