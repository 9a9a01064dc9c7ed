"""Plans under every engine: shares, what is gathered, what is proposed, and what was measured."""

import json
import math
from dataclasses import replace

import pytest
from conftest import ROOT, launch, load_benchmark

from lorasmith.data.lengths import sampled_rows
from lorasmith.engine import DDP, FSDP2, ZERO, Engine, read_engine
from lorasmith.errors import FitError
from lorasmith.memory import communication, facts, machine, offers
from lorasmith.memory.conditions import Setting
from lorasmith.memory.lengths import with_length
from lorasmith.memory.peak import plan_memory
from lorasmith.memory.plans import make_plan
from lorasmith.memory.setting import Rows
from lorasmith.memory.shapes import read_shape
from lorasmith.memory.shares import share_of, units_of
from lorasmith.memory.weights import GIB, base_bytes
from lorasmith.recipe import Recipe, load_recipe

RECIPE = "recipes/sft/llama-3.1-8b-qlora-16gb.yaml"
LARGE = "model.name=meta-llama/Llama-3.3-70B-Instruct"
ENGINES = (DDP, FSDP2, f"{ZERO}-2", f"{ZERO}-3")


def a_shape(name="meta-llama/Llama-3.1-8B-Instruct"):
    return read_shape(*facts.find_config(name))


def a_setting(shape, kind, processes, offload=False, **changes):
    plain = {"quantization": "none", "dtype": "bfloat16", "rank": 64, "longest": 512, "supervised": 512}
    engine = Engine(kind, processes, offload=offload)
    targets = shape.targets("all-linear")
    return Setting(targets=targets, adapted_layers=shape.layers, engine=engine, **(plain | changes))


def a_plan(words, gib, engine, host=0):
    recipe = load_recipe(ROOT / RECIPE, words)
    shape = a_shape(recipe.model.name)
    settled = with_length(recipe, shape.positions)[0]
    card = replace(machine.a_card(gib, engine.processes), host=host)
    return make_plan(settled, shape, sampled_rows(settled, "sft"), card, engine=engine)


def proposed(*words):
    """What plan.py says, in lines."""
    done = launch("scripts/plan.py", RECIPE, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip().splitlines()


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_fsdp_divides_weights_states_and_gradients_by_the_processes(processes):
    shape = a_shape()
    one, many = (share_of(shape, a_setting(shape, FSDP2, count)) for count in (1, processes))
    for name in ("base", "adapter", "optimizer", "gradients"):
        assert getattr(many, name) == pytest.approx(getattr(one, name) / processes, rel=1e-6), name
    assert one.base == base_bytes(shape, a_setting(shape, FSDP2, 1))


def test_a_matrix_of_fewer_rows_than_processes_takes_a_row_of_each():
    shape = a_shape()
    share = share_of(shape, a_setting(shape, FSDP2, 64, rank=16))
    block = sum(one.inputs + -(-one.outputs // 64) * 16 for one in shape.targets("all-linear"))
    assert share.adapter == 4 * shape.layers * block


def test_the_constants_of_4_bit_weights_are_whole_on_every_process():
    shape = a_shape()
    setting = a_setting(shape, FSDP2, 8, quantization="nf4")
    whole = base_bytes(shape, setting)
    # A byte for each 64 weights, four for each 256 of those (QLoRA), and the code tables.
    blocks = [math.ceil(one.weights / 64) for one in shape.linears]
    constants = sum(size + 4 * math.ceil(size / 256) + 4 * 273 for size in blocks)
    assert units_of(shape, setting).apart == shape.layers * constants
    assert share_of(shape, setting).base == pytest.approx(
        (whole - shape.layers * constants) / 8 + shape.layers * constants
    )


def test_8_bit_weights_are_not_divided_and_not_offered():
    shape = a_shape()
    one, many = (share_of(shape, a_setting(shape, FSDP2, count, quantization="int8")) for count in (1, 8))
    assert units_of(shape, a_setting(shape, FSDP2, 8, quantization="int8")).apart > 0.9 * many.base
    assert many.base > 0.75 * one.base
    lines = proposed("model.quantization=int8", "--gpus", "2x80")
    assert [line for line in lines if "FSDP2" in line and "8-bit weights cannot be sharded" in line]
    assert "multi_gpu.yaml" in lines[-1]


def test_optimizers_that_know_no_sharded_weights_are_neither_offered_nor_proposed():
    lines = proposed("trainer.optim=adamw_8bit", "--gpus", "2x24")
    assert [line for line in lines if "FSDP2" in line and "know no sharded weights" in line]
    small = a_plan(["model.quantization=none"], 9, Engine(FSDP2, 2))
    assert not small.fits
    assert small.proposals
    assert not [one for one in small.proposals if {"trainer.optim"} & set(one.overrides)]


def test_the_units_of_a_model_are_all_of_it():
    for name in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-0.6B"):
        shape = a_shape(name)
        for bits in ("none", "nf4"):
            setting = a_setting(shape, FSDP2, 1, quantization=bits)
            units = units_of(shape, setting)
            adapters = 2 * setting.adapter_weights(shape)
            assert units.blocks + units.embedding + units.tail + units.apart - adapters == pytest.approx(
                base_bytes(shape, setting), abs=shape.layers * len(shape.linears)
            )
            assert bool(units.embedding) is not shape.tied


def test_zero_2_divides_what_is_trained_and_zero_3_the_model_too():
    shape = a_shape()
    two, three = (share_of(shape, a_setting(shape, f"{ZERO}-{stage}", 4)) for stage in (2, 3))
    weights = a_setting(shape, DDP, 4).adapter_weights(shape)
    assert two.optimizer == three.optimizer == 12 * weights // 4  # float32 weights and two states (arXiv 1910.02054)
    assert two.base == base_bytes(shape, a_setting(shape, DDP, 4))
    assert three.base < 1.01 * two.base / 4
    assert max(three.gathered.values()) == 2 * (1_000_000_000 + 50_000_000)  # max_live_parameters and those ahead


@pytest.mark.parametrize("kind", [FSDP2, f"{ZERO}-3"])
def test_what_is_offloaded_lies_in_the_computers_memory(kind):
    shape = a_shape()
    held, moved = (share_of(shape, a_setting(shape, kind, 4, offload)) for offload in (False, True))
    assert moved.optimizer == 0 < held.optimizer == moved.host["optimizer"]
    assert held.base - moved.base == moved.host["weights"]
    plans = [plan_memory(shape, a_setting(shape, kind, 4, offload)) for offload in (False, True)]
    assert plans[1].total < plans[0].total
    assert sum(plans[1].host.values()) > sum(plans[0].host.values())


def test_more_processes_never_need_more_of_a_card():
    shape = a_shape()
    for kind in ENGINES:
        sizes = [plan_memory(shape, a_setting(shape, kind, count)).total for count in (2, 4, 8, 16)]
        assert sizes == sorted(sizes, reverse=True), kind


def test_freeing_blocks_between_forward_and_backward_needs_less():
    shape = a_shape()
    setting = a_setting(shape, FSDP2, 4)
    kept = replace(setting, engine=replace(setting.engine, reshard=False))
    assert plan_memory(shape, setting).total < plan_memory(shape, kept).total
    links = communication.PCIE
    assert communication.fetch_seconds(shape, setting, links) == communication.fetch_seconds(shape, kept, links)
    waits = [communication.waited_seconds(one, 2.0, 1.0, 2.0, 10) for one in (setting, kept)]
    assert waits[0] == pytest.approx(2 * waits[1])  # two fetches of two seconds behind halves of one, and one


def test_a_fetch_takes_the_bytes_of_the_others_over_the_bandwidth():
    shape = a_shape()
    setting = a_setting(shape, FSDP2, 4)
    links = communication.Links("made up", 1e9, 1e10, latency=0.0)
    size = base_bytes(shape, setting) + 2 * setting.adapter_weights(shape)
    assert communication.fetch_seconds(shape, setting, links) == pytest.approx(size * 3 / 4 / 1e9)
    offloaded = replace(setting, engine=replace(setting.engine, offload=True))
    assert communication.fetch_seconds(shape, offloaded, links) == pytest.approx(size * 3 / 4 / 1e9 + size / 4 / 1e10)
    assert communication.fetch_seconds(shape, a_setting(shape, DDP, 4), links) == 0
    far = replace(setting, engine=replace(setting.engine, machines=2))
    slow = communication.with_network(links, 4)
    assert communication.fetch_seconds(shape, far, slow) == pytest.approx(size * 3 / 4 / (0.8 * 4e9 / 8))


def test_a_model_that_fits_one_card_is_trained_under_ddp():
    lines = proposed("--gpus", "2x24")
    assert any(line.strip().startswith("DDP") and "<- proposed" in line for line in lines)
    assert lines[-1] == (
        f"next: accelerate launch --config_file accelerate_configs/multi_gpu.yaml --num_processes 2 scripts/sft.py {RECIPE}"
    )


def test_a_model_that_fits_no_card_is_sharded_with_offload_where_it_must_be():
    two = proposed(LARGE, "--gpus", "2x24")
    assert any("FSDP2 with offload" in line and "<- proposed" in line for line in two)
    assert [line for line in two if line.strip().startswith("DDP") and "does not fit" in line]
    assert "--config_file accelerate_configs/fsdp2_offload.yaml --num_processes 2" in two[-1]
    four = proposed(LARGE, "--gpus", "4x24")
    assert "--config_file accelerate_configs/fsdp2.yaml --num_processes 4" in four[-1]


def test_every_engine_that_is_offered_has_its_config():
    for name, (kind, offload) in offers.ENGINES.items():
        path = ROOT / f"accelerate_configs/{name}.yaml"
        found = read_engine(path, 2)
        assert (found.kind, found.offload) == (kind, offload), name


def test_several_machines_are_planned_with_their_network():
    words = [LARGE, "model.quantization=none", "run.effective_batch=64", "--gpus", "8x8x80"]
    slow, fast = (proposed(*words, "--network", gbit) for gbit in ("25", "400"))
    assert "--num_machines 8" in slow[-1]
    assert "--num_processes 64" in slow[-1]

    def speed(lines):
        return int(next(line for line in lines if "<- proposed" in line).split()[-4].replace(",", ""))

    assert speed(fast) > 4 * speed(slow)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_command_for_several_machines_lets_them_meet(rank):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    line = proposed("run.micro_batch=2", "--gpus", "2x2x24")[-1].removeprefix("next: accelerate launch ")
    words = line.replace("RANK", str(rank)).replace("FIRST_MACHINE", "10.0.0.1").split()
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    prepare_multi_gpu_env(arguments)
    assert arguments.rdzv_endpoint == f"10.0.0.1:{offers.PORT}"
    assert (arguments.nnodes, arguments.node_rank, arguments.nproc_per_node) == ("2", rank, "2")


def test_one_config_is_planned_for_alone():
    lines = proposed("--gpus", "2x24", "--engine", "accelerate_configs/fsdp2.yaml")
    assert any("FSDP2 over 2" in line for line in lines)
    assert not any("proposed" in line for line in lines)
    assert "accelerate_configs/fsdp2.yaml --num_processes 2" in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "3x24"], "expected a multiple of 3 processes"),
        (["--gpus", "two"], "--gpus is `two`"),
        (["--gpus", "0x24"], "--gpus is `0x24`"),
        (["--gpus", "2x24", "--engine", "accelerate_configs/none.yaml"], "not found"),
        (["--gpus", "2x24", "--engine", "accelerate_configs/deepspeed_zero3.yaml"], "it shards unquantized weights"),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_exit_2(words, said):
    done = launch("scripts/plan.py", RECIPE, *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_computers_memory_is_a_second_budget():
    engine = Engine(FSDP2, 2, offload=True)
    assert a_plan([LARGE], 24, engine).fits
    short = a_plan([LARGE], 24, engine, host=32 * GIB)
    assert not short.fits
    assert "computer's memory" in short.line()
    with pytest.raises(FitError, match="of the computer's memory under FSDP2 with offload over 2"):
        raise short.error()
    done = launch("scripts/plan.py", RECIPE, LARGE, "--gpus", "2x24", "--ram", "32")
    assert done.returncode == 3
    assert "computer's memory" in done.stderr


def test_speeds_of_one_engine_are_not_kept_for_another():
    kinds = [
        a_plan([], 80, Engine(kind, 2, offload=off)).kind for kind, off in offers.ENGINES.values() if "3" not in kind
    ]
    assert len(set(kinds)) == len(kinds)


def test_processes_that_share_a_row_hold_their_part_of_it():
    whole, half = (a_plan([], 80, Engine(FSDP2, 2, context=context)) for context in (1, 2))
    assert half.setting.longest == whole.setting.longest // 2
    assert half.tokens == whole.tokens
    assert half.setting.processes == 1


def test_a_process_of_a_launch_plans_for_its_engine(monkeypatch, capsys):
    from types import SimpleNamespace

    from lorasmith import hardware
    from lorasmith.runs import planning

    launcher = {
        "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
        "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    recipe = load_recipe(ROOT / "recipes/quickstart.yaml", ["run.micro_batch=4"])
    config = json.loads((ROOT / "quickstart/base/config.json").read_text())
    row = SimpleNamespace(input_ids=[1] * 60, supervised=20)
    prepared = SimpleNamespace(train=[row] * 64, eval=[])
    device = hardware.find_hardware(use_cpu=True)
    _, _, alone = planning.plan_run(recipe, config, device, prepared, {})
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    _, _, plan = planning.plan_run(recipe, config, device, prepared, {})
    assert plan.engine.label == "FSDP2 over 4 on 2 machines"
    assert plan.setting.accumulation == 1
    assert plan.memory.moments["loaded"]["base"] < alone.memory.moments["loaded"]["base"] / 2
    assert plan.machine.rate.flops == pytest.approx(alone.machine.rate.flops / 2, rel=0.5)  # two on one machine
    assert "each process, FSDP2 over 4 on 2 machines" in capsys.readouterr().out


@pytest.mark.slow
def test_a_launched_run_is_planned_for_its_engine(tmp_path):
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2_processes_fsdp2.yaml",
        "scripts/sft.py", "recipes/quickstart.yaml", "run.micro_batch=4", "trainer.max_steps=2", f"output_dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["plan"]["engine"] == "FSDP2 over 2"
    assert "|2 on 1|FSDP2" in run["plan"]["kind"]


def test_the_plan_is_within_7_percent_of_what_processes_hold():
    report = json.loads((ROOT / "benchmarks/engine_memory.json").read_text())
    cells = load_benchmark("engine_memory").cells()
    assert [one["label"] for one in report["cells"]] == [one.label for one in cells]
    for one in report["cells"]:
        assert all(abs(error) <= 0.07 for error in one["errors"].values()), one["label"]
        assert max(abs(one["errors"][name]) for name in ("loaded", "update")) <= 0.002, one["label"]
    assert report["summary"]["mean_absolute"] <= 0.02


def test_the_measured_plans_are_those_of_today():
    benchmark, grid = load_benchmark("engine_memory"), load_benchmark("memory_grid")
    grid.SMALL.update(benchmark.MODELS)
    report = json.loads((ROOT / "benchmarks/engine_memory.json").read_text())
    for one in report["cells"]:
        cell = grid.Cell(
            one["model"], one["quantization"], one["length"], 1, one["accumulation"], one["checkpointing"],
            levers=one["levers"], rank=one["rank"],
        )  # fmt: skip
        wanted = grid.recipe_of(cell, ROOT)
        wanted["run"]["effective_batch"] *= one["processes"]
        length = one["length"]
        rows = Rows([length] * 8, 8, length, length, 0, "made up")
        engine = Engine(one["engine"], one["processes"], cpu=True, reshard=one["reshard"])
        shape = read_shape(grid.config_of(one["model"]))
        plan = make_plan(Recipe.model_validate(wanted), shape, rows, grid.a_machine("cpu"), engine=engine)
        planned = benchmark.planned(plan.memory)
        for name, size in one["planned_gib"].items():
            assert planned[name] / GIB == pytest.approx(size, abs=2e-5), one["label"]


def test_updates_of_cpu_processes_are_told_with_their_predictions():
    report = json.loads((ROOT / "benchmarks/scaling.json").read_text())
    page = (ROOT / "docs/scaling.md").read_text()
    assert {(one["base"], one["engine"], one["processes"]) for one in report["runs"]} == {
        (one.base, one.engine, one.processes) for one in load_benchmark("scaling").runs()
    }
    for one in report["runs"]:
        assert f"| {one['base']} | {one['engine']} | {one['processes']} |" in page
        if "error" in one:
            assert one["error"] == pytest.approx(one["predicted"] / one["seconds"] - 1, abs=2e-3)
