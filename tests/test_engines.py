"""Engines: what an accelerate config asks for, what is refused, and that a sharded model trains as a whole one."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, launch, load_benchmark, losses

from lorasmith.engine import DDP, FSDP1, FSDP2, SINGLE, ZERO2, ZERO3, Engine, read_engine, this_engine
from lorasmith.engine_checks import check_engine
from lorasmith.errors import RecipeError
from lorasmith.recipe import load_recipe

CONFIGS = ROOT / "accelerate_configs"
KINDS = {
    "one_gpu": SINGLE,
    "multi_gpu": DDP,
    "fsdp2": FSDP2,
    "fsdp2_offload": FSDP2,
    "context_parallel": FSDP2,
    "deepspeed_zero2": ZERO2,
    "deepspeed_zero3": ZERO3,
    "deepspeed_zero3_offload": ZERO3,
    "cpu": SINGLE,
    "cpu_2_processes": DDP,
    "cpu_2_processes_fsdp2": FSDP2,
    "two_nodes": DDP,
    "cpu_two_nodes": DDP,
}
QUICK = ["model.quantization=none", "model.dtype=float32", "run.micro_batch=4", "trainer.logging_steps=1"]


def recipe(*words):
    return load_recipe(
        ROOT / "recipes/quickstart.yaml", ["model.quantization=none", "run.micro_batch=4", *words], "sft"
    )


@pytest.mark.parametrize("name", KINDS)
def test_a_config_is_read_as_its_launcher_hands_it_on(name):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    path = CONFIGS / f"{name}.yaml"
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(path), "--machine_rank", "0", "--main_process_ip", "127.0.0.1", "scripts/sft.py"]
    )
    arguments, *_ = _validate_launch_command(arguments)
    arguments.deepspeed_fields_from_accelerate_config = []  # as launch_command sets it
    if arguments.use_deepspeed:
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.num_processes > 1:
        environment = prepare_multi_gpu_env(arguments)
    else:
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
    count, local = arguments.num_processes, arguments.num_processes // arguments.num_machines
    environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(local)}
    launched = this_engine({**environment, "ACCELERATE_USE_CPU": str(arguments.use_cpu)})
    read = read_engine(path)
    assert read.kind == KINDS[name]
    for one in ("kind", "processes", "machines", "cpu", "offload", "reshard", "context"):
        assert getattr(read, one) == getattr(launched, one), one


SHARDED = {"kind": FSDP2, "processes": 2}
# What is wrong, and what the line says of it and of the change.
WRONG = {
    "an effective batch that does not divide": (
        {"kind": DDP, "processes": 3}, ["run.micro_batch=4"],
        "run.effective_batch is `16`; expected a multiple of 3 processes x run.micro_batch `4`. Write run.effective_batch=24.",
    ),
    "a micro-batch that is too large": ({"kind": DDP, "processes": 2}, ["run.micro_batch=16"], "Write run.micro_batch=8."),
    "the first FSDP": ({"kind": FSDP1, "processes": 2}, [], "fsdp_config.fsdp_version is `1`; expected 2. Write fsdp_version: 2."),
    "another engine": ({"kind": "Megatron-LM", "processes": 2}, [], "the engine is Megatron-LM; expected DDP, FSDP2, ZeRO-2 or ZeRO-3."),
    "8-bit weights sharded": (SHARDED, ["model.quantization=int8"], "FSDP2 with model.quantization `int8`; 8-bit weights cannot be"),
    "4-bit weights under ZeRO-3": (
        {"kind": ZERO3, "processes": 2, "settings": {"zero3_save_16bit_model": True}}, ["model.quantization=nf4"],
        "ZeRO-3 with model.quantization `nf4`; it shards unquantized weights. Take accelerate_configs/fsdp2.yaml",
    ),
    "no whole adapter to save": (
        {"kind": ZERO3, "processes": 2, "settings": {"zero3_save_16bit_model": False}}, [],
        "zero3_save_16bit_model is `false`; the adapter would not be gathered",
    ),
    "another wrap policy": (
        {**SHARDED, "settings": {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}}, [], "fsdp_auto_wrap_policy is `SIZE_BASED_WRAP`;",
    ),
    "a checkpoint in parts": (
        {**SHARDED, "settings": {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}}, [], "fsdp_state_dict_type is `SHARDED_STATE_DICT`;",
    ),
    "checkpointing twice": ({**SHARDED, "settings": {"fsdp_activation_checkpointing": True}}, [], "run.gradient_checkpointing decides"),
    "accumulation twice": (
        {"kind": DDP, "processes": 2, "settings": {"gradient_accumulation_steps": "4"}}, [],
        "gradient_accumulation_steps is `4`; it follows from run.effective_batch.",
    ),
    "another dtype": (
        {"kind": DDP, "processes": 2, "settings": {"mixed_precision": "fp16"}}, ["model.dtype=bfloat16"],
        "mixed_precision is `fp16`; the recipe's model.dtype is `bfloat16`. Take the line out",
    ),
    "clipping twice": (
        {"kind": ZERO2, "processes": 2, "settings": {"gradient_clipping": "0.3"}}, [], "gradient_clipping is `0.3`; trainer.max_grad_norm",
    ),
    "a file that is not checked": (
        {"kind": ZERO2, "processes": 2, "settings": {"deepspeed_config_file": "ds.json"}}, [], "deepspeed_config_file is `ds.json`;",
    ),
    "DeepSpeed on CPUs": ({"kind": ZERO2, "processes": 2, "cpu": True}, [], "ZeRO-2 on CPUs; DeepSpeed needs GPUs."),
    "offload from a CPU": ({**SHARDED, "cpu": True, "offload": True}, [], "fsdp_offload_params is `true` on CPUs;"),
    "tensor parallel": ({**SHARDED, "settings": {"parallelism_config_tp_size": 2}}, [], "parallelism_config_tp_size is `2`;"),
    "context parallel without FSDP2": ({"kind": DDP, "processes": 2, "context": 2}, [], "parallelism_config_cp_size is `2` under DDP;"),
    "context parallel on flat batches": ({**SHARDED, "context": 2}, [], "rows are padded then. Write speed.padding_free=false"),
    "a method of adapters": (SHARDED, ["adapter.method=ia3"], "FSDP2 with adapter.method `ia3`; expected lora, rslora or dora."),
    "new tokens sharded": (SHARDED, ["model.add_tokens=[<a>]"], "FSDP2 with model.add_tokens; peft's copies of embedding and head"),
    "a whole module sharded": (
        SHARDED, ["adapter.options.modules_to_save=[lm_head]"], "Take adapter.options.modules_to_save out, or take accelerate_configs/multi_gpu",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_combination_is_one_line_that_names_the_change(name):
    engine, words, line = WRONG[name]
    with pytest.raises(RecipeError) as caught:
        check_engine(Engine(**engine), recipe(*words), "sft")
    assert line in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_generation_from_a_sharded_model_is_refused():
    with pytest.raises(RecipeError, match=r"FSDP2 for grpo\.py; it would gather the whole model for each token"):
        check_engine(Engine(FSDP2, 2), recipe(), "grpo")


@pytest.mark.parametrize("engine", [Engine(), Engine(DDP, 2), Engine(FSDP2, 4), Engine(FSDP2, 2, offload=True)])
def test_a_right_combination_is_let_through(engine):
    check_engine(engine, recipe("model.quantization=nf4"), "sft")
    check_engine(engine, recipe(), "text_classification")


@pytest.mark.parametrize("text", ["- a", "a: [", "compute_environment: LOCAL_MACHINE"])
def test_what_is_no_config_is_told(text, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"c\.yaml: (no accelerate config|not YAML)"):
        read_engine(path)
    with pytest.raises(RecipeError, match="not found"):
        read_engine(tmp_path / "none.yaml")


# By the real launcher: changes of cpu_2_processes_fsdp2.yaml, and words for the script.
LAUNCHED = {
    "8-bit weights": ({}, {}, ["model.quantization=int8"]),
    "an effective batch": ({}, {}, ["run.effective_batch=9"]),
    "another block": ({}, {"fsdp_transformer_layer_cls_to_wrap": "GPT2Block"}, []),
    "the first FSDP": ({}, {"fsdp_version": 1}, []),
    "another wrap policy": ({}, {"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP", "fsdp_min_num_params": 1000}, []),
    "a checkpoint in parts": ({}, {"fsdp_state_dict_type": "SHARDED_STATE_DICT"}, []),
    "checkpointing twice": ({}, {"fsdp_activation_checkpointing": True}, []),
    "offload": ({}, {"fsdp_offload_params": True}, []),
    "another dtype": ({"mixed_precision": "fp16"}, {}, []),
    "a method of adapters": ({}, {}, ["adapter.method=ia3"]),
    "an engine in the recipe": ({}, {}, ["trainer.fsdp=full_shard"]),
    "a prompt method": ({}, {}, ["adapter.method=prompt_tuning"]),
}
QUICKLY = ("8-bit weights", "another block")  # the others in make test-full


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=() if one in QUICKLY else pytest.mark.slow) for one in LAUNCHED]
)
def test_a_launched_wrong_combination_is_told_once_and_ends_in_2(name, tmp_path):
    top, part, words = LAUNCHED[name]
    config = yaml.safe_load((CONFIGS / "cpu_2_processes_fsdp2.yaml").read_text()) | top
    config["fsdp_config"] |= part
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = launch(
        "scripts/launch.py", "--config_file", path, "scripts/sft.py", "recipes/quickstart.yaml", "model.quantization=none", "run.micro_batch=4",
        *words, f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "Traceback" not in done.stderr.split("ChildFailedError")[0].split("error: ")[1].splitlines()[0]
    assert not (tmp_path / "run").exists()


def sharded(config: str, folder: Path, *words: str) -> Path:
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml", "scripts/sft.py",
        "recipes/quickstart.yaml", *QUICK, "trainer.max_steps=4", "trainer.save_steps=2", "run.keep_checkpoints=true",
        f"output_dir={folder}", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same run of one process, and of two that share the model."""
    folder = tmp_path_factory.mktemp("both")
    return [sharded(config, folder / config) for config in ("cpu", "cpu_2_processes_fsdp2")]


def same(one: Path, other: Path) -> bool:
    return (
        load_benchmark("engines").differences(one, other)["adapter"] < 1e-4
    )  # the optimizer's first steps enlarge what rounding makes


def test_a_sharded_run_has_the_losses_and_the_adapter_of_one_process(both):
    found = load_benchmark("engines").differences(*both)
    assert found["loss"] < 1e-5
    assert found["eval_loss"] < 1e-5
    assert found["adapter"] < 1e-4
    assert len(losses(both[1])) == 4
    files = [{str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} for folder in both]
    assert {name for name in files[0] ^ files[1] if "rng_state" not in name} == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["adapter.method=dora"],
        ["adapter.method=dora", "model.quantization=nf4"],
        ["adapter.method=rslora"],
        ["adapter.loraplus_lr_ratio=4"],
        ["model.dtype=bfloat16"],
        ["run.gradient_checkpointing=true"],
        ["run.early_stopping=1", "trainer.eval_steps=2"],
    ],
    ids=" ".join,
)
def test_settings_have_the_same_losses_in_a_sharded_run(words, tmp_path):
    found = load_benchmark("engines").differences(
        *(sharded(config, tmp_path / config, *words) for config in ("cpu", "cpu_2_processes_fsdp2"))
    )
    assert found["loss"] < 1e-5
    assert found["eval_loss"] < 1e-5
    assert found["adapter"] < 1e-4


@pytest.mark.parametrize(
    ("written", "config", "count"),
    [
        (1, "cpu", 1),
        (0, "cpu_2_processes_fsdp2", 2),
        pytest.param(1, "cpu_2_processes_fsdp2", 4, marks=pytest.mark.slow),
        pytest.param(1, "cpu_2_processes", 2, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_one_engine_goes_on_under_another(both, written, config, count, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(both[written], folder)
    shutil.rmtree(folder / "checkpoint-4")
    for name in ("adapter_model.safetensors", "status.json"):
        (folder / name).unlink()
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml", "--num_processes", count,
        "scripts/sft.py", "recipes/quickstart.yaml", *QUICK, "trainer.max_steps=4", "trainer.save_steps=2",
        "run.keep_checkpoints=true", f"output_dir={folder}", "--resume",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the run goes on behind step 2" in done.stdout
    assert same(both[0], folder)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["dpo", "orpo", "reward", "text_classification"])
def test_other_scripts_have_the_same_losses_under_every_engine(script, tmp_path):
    for found in load_benchmark("engines").compare(script, "none", [2], tmp_path):
        assert found["loss"] < 1e-5, found
        assert found["eval_loss"] < 1e-5, found
        assert found["adapter"] < 1e-4, found


def test_the_page_has_the_table_of_the_benchmark():
    report = json.loads((ROOT / "benchmarks/engines.json").read_text())
    kinds = {(one["script"], one["base"], one["engine"], one["processes"]) for one in report["found"]}
    assert len(kinds) == 3 * 2 * 2 * 2
    assert all(one["loss"] < 1e-5 for one in report["found"])
    assert load_benchmark("engines").table(report["found"]) in (ROOT / "docs/scaling.md").read_text()
