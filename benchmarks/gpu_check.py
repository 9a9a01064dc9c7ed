"""Every test and measurement that needs a GPU, in under nine minutes: JSON and a table in benchmarks/.

    make gpu-check                      # python benchmarks/gpu_check.py [--out FOLDER]

1. tests/gpu; 2. each shipped recipe with its plan's settings under a memory cap that stands for its card; 3. the speed
against trl (speed_gpu.py); 4. the memory grid. A part that fails is told and costs no other. Without a GPU the table says
"not measured" and the exit code is 0.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
BUDGET = 530  # seconds for everything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(ROOT)
    start = time.perf_counter()
    import torch

    if not torch.cuda.is_available():
        report: dict[str, Any] = {
            "machine": None,
            "tests": None,
            "capped": capped_recipes(None),
            "speed": None,
            "grid": None,
        }
    else:
        report = {"machine": machine(), "failed": {}}
        parts = {
            "tests": tests,
            "capped": lambda: capped_recipes(start),
            "speed": lambda: speed(start),
            "grid": lambda: grid(start),
        }
        for name, part in parts.items():
            report[name] = guarded(report["failed"], name, part)
    report["seconds"] = round(time.perf_counter() - start)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    (arguments.out / "gpu_check.md").write_text(table(report))
    print(table(report))
    tests_failed = (report["tests"] or {}).get("failed", 0)
    sys.exit(1 if tests_failed or report.get("failed") else 0)


def guarded(failed: dict[str, str], name: str, part: Callable[[], Any]) -> Any:
    """What a part of the check finds, or None and its failure noted."""
    try:
        return part()
    except Exception as error:  # one part must not cost the others
        failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{name}: {failed[name]}", flush=True)
        return None


def machine() -> dict[str, Any]:
    import torch

    from lorasmith.runs.folder import versions

    return {"gpu": torch.cuda.get_device_name(0), "memory_gib": total_gib(), "versions": versions()}


def total_gib() -> float:
    import torch

    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)


def tests() -> dict[str, Any]:
    """tests/gpu in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()[-300:]
    print(done.stdout[-4000:], flush=True)
    return {"failed": done.returncode, "result": last}


def capped_recipes(start: float | None) -> list[dict[str, Any]]:
    """Each shipped recipe, its base's real shapes with random weights, for two updates on a card of its name's size.

    The cap holds for torch's allocator, so it leaves out what the plan reserves for CUDA itself.
    """
    from memory_grid import Cell, measure

    from lorasmith.memory import facts, machine
    from lorasmith.memory.lengths import with_length
    from lorasmith.memory.peak import CUDA_CONTEXT
    from lorasmith.memory.plans import make_plan
    from lorasmith.memory.setting import Rows
    from lorasmith.memory.shapes import read_shape
    from lorasmith.memory.weights import GIB
    from lorasmith.recipe import load_recipe

    results = []
    for path in sorted((ROOT / "recipes/sft").glob("*.yaml")):
        gib = int(path.stem.rpartition("-")[2].removesuffix("gb"))
        recipe = load_recipe(path, [])
        shape = read_shape(*facts.find_config(recipe.model.name))
        recipe, _ = with_length(recipe, shape.positions)
        length = recipe.trainer["max_length"]
        plan = make_plan(
            recipe, shape, Rows([length] * 64, 64, length, length, 0, "all of max_length"), machine.a_card(gib)
        )
        one: dict[str, Any] = {"recipe": path.stem, "card_gib": gib, "predicted_gib": round(plan.needed / GIB, 2)}
        one |= {"micro_batch": plan.setting.micro_batch, "checkpointing": plan.setting.checkpointing, "fits": plan.fits}
        if start is not None and time.perf_counter() - start < BUDGET * 0.5:
            import torch

            cap = (gib * GIB * 0.98 - CUDA_CONTEXT) / torch.cuda.get_device_properties(0).total_memory
            cell = Cell(
                recipe.model.name, recipe.model.quantization, length, plan.setting.micro_batch, 1,
                plan.setting.checkpointing != "none", dtype="bfloat16", method=recipe.adapter.method,
                rank=recipe.adapter.rank, offload=plan.setting.checkpointing == "offload",
            )  # fmt: skip
            if recipe.model.name not in facts.known_models():
                cell = replace(cell, model="Qwen/Qwen3-4B")
            try:
                found = measure(cell, "cuda", cap=min(1.0, cap))
                one |= {
                    "measured_gib": found["measured_gib"],
                    "result": "trained",
                    "tokens_per_second": found["tokens_per_second"],
                }
            except Exception as error:  # an out-of-memory is the finding
                one |= {"measured_gib": None, "result": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            print(one, flush=True)
        results.append(one)
    return results


def speed(start: float, device: str = "cuda") -> list[dict[str, Any]] | None:
    """speed_gpu.py in a process of its own, with half of the time that is left; what it found if it was ended."""
    seconds = (BUDGET - (time.perf_counter() - start)) / 2
    if seconds < 30:
        return None
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()  # what this process keeps, the other one lacks
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speed.json"
        command = [sys.executable, "benchmarks/speed_gpu.py", "--seconds", f"{seconds:.0f}", "--out", str(path)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run([*command, "--device", device], capture_output=True, text=True, timeout=seconds + 45)
            print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
        return json.loads(path.read_text()) if path.exists() else None


def grid(start: float) -> dict[str, Any] | None:
    """The memory grid, for the minutes that are left."""
    left = (BUDGET - (time.perf_counter() - start)) / 60
    if left < 0.5:
        return None
    command = [sys.executable, "benchmarks/memory_grid.py", "--device", "cuda", "--minutes", f"{left:.2f}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * left + 60)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    path = ROOT / "benchmarks/memory_grid_cuda.json"
    return json.loads(path.read_text()) if done.returncode == 0 and path.exists() else None


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    from speed_gpu import table as speed_table

    measured = report["machine"] is not None
    who = f"{report['machine']['gpu']}, {report['machine']['memory_gib']} GiB" if measured else "not measured"
    lines = ["# GPU check", "", f"Machine: {who}. Made by `make gpu-check`.", ""]
    lines += [f"{name} failed: {why}" for name, why in report.get("failed", {}).items()]
    lines += [f"Tests: {report['tests']['result'] if report['tests'] else 'not measured'}", ""]
    lines += ["Shipped recipes, two updates each, with the memory of the card they are named for:", ""]
    lines += ["| recipe | card | planned | measured | settings | result |", "|---|---|---|---|---|---|"]
    for one in report["capped"] or []:
        settings = f"micro-batch {one['micro_batch']}, checkpointing {one['checkpointing']}"
        found = f"{one['measured_gib']:.2f} GiB" if one.get("measured_gib") else "not measured"
        lines.append(
            f"| {one['recipe']} | {one['card_gib']} GiB | {one['predicted_gib']:.2f} GiB | {found} | {settings} | "
            f"{one.get('result', 'not measured')} |"
        )
    lines += ["", "Speed against trl on random weights:", "", speed_table(report["speed"])]
    lines += ["", "Memory grid: " + (json.dumps(report["grid"]["summary"]) if report["grid"] else "not measured"), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
