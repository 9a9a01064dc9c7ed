"""The accelerate configs: all load, and those of a CPU run what they say."""

from pathlib import Path

import pytest
import yaml
from conftest import ROOT, launch, losses

CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def launched(config: str, *words) -> list[float]:
    """Losses of six updates through the real launcher."""
    folder = Path(words[-1].partition("=")[2])
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml", "scripts/sft.py",
        "recipes/quickstart.yaml", "model.quantization=none", "model.dtype=float32", "trainer.max_steps=6",
        "trainer.logging_steps=1", *words,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return losses(folder)


def commands_of(config: str) -> list[str]:
    """The commands that stand in the header of a config."""
    lines = (ROOT / f"accelerate_configs/{config}.yaml").read_text().splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#   accelerate launch")]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_one_that_accelerate_knows_and_tells_its_command(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    machines = 2 if path.stem.endswith("two_nodes") else 1
    assert config.num_machines == machines
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    start = f"accelerate launch --config_file accelerate_configs/{path.name}"
    ranks = [f" --machine_rank {rank} --main_process_ip ADDRESS" for rank in range(machines)] if machines > 1 else [""]
    assert commands_of(path.stem) == [f"{start}{rank} scripts/sft.py RECIPE" for rank in ranks]


def test_two_processes_train_to_the_losses_of_one_at_the_same_effective_batch(tmp_path):
    one = launched("cpu", "run.micro_batch=4", f"output_dir={tmp_path / 'one'}")
    two = launched("cpu_2_processes", "run.micro_batch=4", f"output_dir={tmp_path / 'two'}")
    assert len(two) == 6
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    log = (tmp_path / "two/metrics.jsonl").read_text()
    assert log.count('"step": 6, "loss"') == 1


def test_two_processes_really_run(tmp_path):
    done = launch(
        "-m", "accelerate.commands.launch", "--config_file", "accelerate_configs/cpu_2_processes.yaml", "scripts/sft.py",
        "recipes/quickstart.yaml", "--dry-run", f"output_dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert (
        "8 x 1 accumulated x 2 processes" in done.stdout
        or "expected a multiple of 2 processes x run.micro_batch `16`" in done.stderr
    )
