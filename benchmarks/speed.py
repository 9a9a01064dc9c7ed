"""How fast: sft.py, trl's own script and LLaMA-Factory on the same model, rows, tokens and losses, in turn, in one run.

    python benchmarks/speed.py [--shape 0.5B|100M|all] [--repeats 3] [--llamafactory PYTHON]

Writes benchmarks/speed.json, docs/speed.png and the tables between the marks in README.md (`make speed`); about 15
minutes a shape on two cores. --llamafactory takes the Python of an environment with llamafactory 0.9.5, which cannot
share ours; on a CPU: pip install torch==2.13.0 llamafactory==0.9.5 && pip uninstall torchvision torchaudio, and an empty
package `torchaudio` in their place, because the ones on PyPI want CUDA.

- Ours runs at its defaults. trl runs at its defaults (only what a CPU demands is set) and at its best setting by hand:
  each of TRL_TUNINGS is tried on a few rows, and kept if it makes the training faster. LLaMA-Factory is tuned likewise.
- All read the same bfloat16 file of random weights and rows/train.jsonl once: alpaca's and gsm8k's rows where the folder
  --rows has them, else made-up ones. A digest of ids and labels must be equal for all.
- A contender is a whole process. Wall time is from the command to the adapter on the disk; the steady tokens/s, without
  padding, are those behind the first update. The losses of all updates must be equal, unless a setting puts other rows
  together, and so must be the loss of rows that nobody trained on, which plain peft measures.
"""

import argparse
import importlib.util
import itertools
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from speed_inputs import ROOT, SHAPES, flops_per_token, llamafactory_settings

OURS, TRL, BEST, FACTORY, FACTORY_BEST = (
    "lorasmith", "trl, defaults", "trl, best by hand", "LLaMA-Factory, defaults", "LLaMA-Factory, best by hand",
)  # fmt: skip
# Changes tried in this order on top of what was kept before; a value is a flag of trl's script.
TRL_START = {"dtype": "float32", "bf16": "false", "gradient_checkpointing": "false"}
TRL_TUNINGS: dict[str, dict[str, Any]] = {
    "bfloat16 weights": {"dtype": "bfloat16"},
    "micro-batch 1: no padding": {"micro": 1},
    "micro-batch 2": {"micro": 2},
    "rows of like length together": {"train_sampling_strategy": "group_by_length"},
    "rows of like length together, micro-batch 4": {"train_sampling_strategy": "group_by_length", "micro": 4},
    "packed (bfd), one pack a micro-batch": {"packing": "true", "micro": 1},
    "attention in plain torch": {"attn_implementation": "eager"},  # torch.compile: docs/experiments.md
}
FACTORY_START = {"dtype": "float32", "disable_gradient_checkpointing": True}
FACTORY_TUNINGS: dict[str, dict[str, Any]] = {
    "bfloat16 weights": {"dtype": "bfloat16"},
    "bfloat16 autocast": {"bf16": True},
    "micro-batch 1: no padding": {"micro": 1},
    "micro-batch 2": {"micro": 2},
    "rows of like length together": {"train_sampling_strategy": "group_by_length"},
    "rows of like length together, micro-batch 4": {"train_sampling_strategy": "group_by_length", "micro": 4},
    "attention in plain torch": {"flash_attn": "disabled"},
}
PATIENCE = 1.3  # a probe is ended, and lost, when it takes so many times the wall time of the best one
HOPELESS = 2.5  # a contender whose first run takes so many times our wall time is not repeated
# Relative; trl prints four digits, and a run of few updates hangs on which rows they hold.
LOSS_TOLERANCE = {"training": 1e-3, "held-out": 2e-3, "held-out, in another order": 1e-2}
MARKS = ("<!-- speed: made by `make speed` -->", "<!-- /speed -->")
FIGURES = ("tokens_per_second", "wall_seconds", "first_step_seconds", "cpu_seconds", "peak_gib")


@dataclass(frozen=True)
class Bench:
    """A folder with one shape's model and rows, and the rows an update."""

    shape: str
    folder: Path
    batch: int
    micro: int
    factory: Path | None
    tokens: int = 0


@dataclass
class Contender:
    """A command that trains, and what its runs were."""

    command: Callable[[str], list[str]]  # of the name of the rows
    runs: list[dict[str, Any]] = field(default_factory=list)
    reorders: bool = False  # other rows make an update, so that only the whole run compares


def main() -> None:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(ROOT)
    path = arguments.out / "speed.json"
    report = json.loads(path.read_text()) if path.exists() else {"shapes": {}}
    for shape in ("0.5B", "100M") if arguments.shape == "all" else (arguments.shape,):
        with tempfile.TemporaryDirectory() as name:
            report["shapes"][shape] = compare(shape, Path(name), arguments)
    report |= {
        "machine": f"{platform.machine()}, {os.cpu_count()} threads",
        "versions": versions(arguments.llamafactory),
    }
    print(region(report))
    if arguments.only or not arguments.write:
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    readme, picture = (ROOT / "README.md", ROOT / "docs/speed.png")
    if arguments.out != Path(__file__).parent:
        readme, picture = None, arguments.out / "speed.png"
    draw(report, picture)
    if readme:
        readme.write_text(with_region(readme.read_text(), region(report)))
    unequal = [f"{shape}: {line}" for shape, one in report["shapes"].items() for line in one["unequal"]]
    sys.exit("\n".join(unequal) or None)


def compare(shape: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All contenders on one shape."""
    facts = SHAPES[shape]
    updates = arguments.steps or facts["updates"]
    factory = arguments.llamafactory if re.search(arguments.only, f"{FACTORY}\n{FACTORY_BEST}") else None
    bench = Bench(shape, folder, facts["batch"], facts["micro"], factory)
    made = ask("make", folder, shape, arguments.rows, updates)
    digests = {tool: ask("ids", tool, folder) for tool in ("lorasmith", "trl")}
    if factory:
        digests["llamafactory"] = ask("ids", "llamafactory", folder, python=factory)
    print(f"{shape}: {made}, {digests}", flush=True)
    if len({one["digest"] for one in digests.values()}) > 1:
        raise SystemExit(f"the contenders would train on different ids or labels: {digests}")
    rows = digests["lorasmith"]
    bench = Bench(shape, folder, bench.batch, bench.micro, factory, rows["tokens"])
    rates = [ask("rates")]
    tried: dict[str, Any] = {}
    contenders = line_up(bench, arguments, tried)
    race(bench, contenders, arguments.repeats)
    memory = {} if arguments.only or arguments.quick or not arguments.memory else memory_cells(bench)
    held_out = ask("scores", folder, *(str(path) for path in sorted((folder / "kept").iterdir())))
    rates.append(ask("rates"))
    matmul = statistics.median(max(one.values()) for one in rates)
    flops = flops_per_token(facts["config"], rows["supervised"] / rows["tokens"], rows["mean_document"])
    median = {
        name: {key: statistics.median(run[key] for run in one.runs) for key in FIGURES} | {"runs": len(one.runs)}
        for name, one in contenders.items()
    }
    for one in median.values():
        one["share_of_matmul"] = round(one["tokens_per_second"] * flops / matmul, 3)
    return {
        "says": facts["says"], "rows": made["rows"], "updates": updates, "batch": bench.batch, "micro": bench.micro,
        **{key: rows[key] for key in ("tokens", "supervised", "longest", "mean_document", "digest")},
        "tools": sorted(digests), "matmul_gflops": round(matmul / 1e9, 1), "gflop_per_token": round(flops / 1e9, 3),
        "median": median, "held_out_loss": held_out, "unequal": unequal(contenders, held_out), "memory": memory,
        "tried": tried, "runs": {name: one.runs for name, one in contenders.items()},
    }  # fmt: skip


def line_up(bench: Bench, arguments: argparse.Namespace, tried: dict[str, Any]) -> dict[str, Contender]:
    """The contenders by name, the best settings by hand found first."""
    start = {"micro": bench.micro}
    contenders = {
        OURS: Contender(lambda rows: ours(bench, rows)),
        TRL: Contender(lambda rows: trls(bench, rows, start)),
    }
    if re.search(arguments.only, BEST):
        tried["trl"] = tune(bench, trls, start | TRL_START, wanted(TRL_TUNINGS, arguments))
        contenders[BEST] = Contender(
            lambda rows: trls(bench, rows, tried["trl"]["best"]), reorders=reorders(tried["trl"]["best"])
        )
    if bench.factory:
        contenders[FACTORY] = Contender(lambda rows: factories(bench, rows, start))
        tried["LLaMA-Factory"] = tune(bench, factories, start | FACTORY_START, wanted(FACTORY_TUNINGS, arguments))
        found = tried["LLaMA-Factory"]["best"]
        contenders[FACTORY_BEST] = Contender(lambda rows: factories(bench, rows, found), reorders=reorders(found))
    return {name: one for name, one in contenders.items() if re.search(arguments.only, name)}


def wanted(tunings: dict[str, dict[str, Any]], arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The changes to try."""
    kept = {name: change for name, change in tunings.items() if re.search(arguments.tunings, name)}
    return {} if arguments.quick else kept


def reorders(settings: dict[str, Any]) -> bool:
    return bool({"train_sampling_strategy", "packing"} & set(settings))


def tune(bench: Bench, command: Any, start: dict[str, Any], tunings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The fastest setting found by trying one change after the other on a few rows, and what was tried.

    A probe is short, so the two fastest are tried once more, and their means decide.
    """
    if not tunings:
        return {"best": start, "tried": {}}
    tried = {"start": measured(command(bench, "probe", start), bench) | {"settings": start}}
    fastest = tried["start"]
    print(f"probe, start: {fastest}", flush=True)
    for name, change in tunings.items():
        settings = fastest["settings"] | change
        if settings == fastest["settings"]:
            continue
        limit = fastest["wall_seconds"] * PATIENCE + 5
        try:
            tried[name] = measured(command(bench, "probe", settings), bench, limit) | {"settings": settings}
            fastest = max(fastest, tried[name], key=speed_of)
        except subprocess.TimeoutExpired:
            tried[name] = {"slower": f"ended after {limit:.0f} s; the best took {fastest['wall_seconds']:.0f} s"}
        except RuntimeError as error:
            tried[name] = {"failed": str(error).strip().splitlines()[-1][-300:]}
        print(f"probe, {name}: {tried[name]}", flush=True)
    first_two = sorted((one for one in tried.values() if "settings" in one), key=speed_of)[-2:]
    for one in first_two:
        again = speed_of(measured(command(bench, "probe", one["settings"]), bench))
        one["tokens_per_second"] = round((speed_of(one) + again) / 2, 2)
    best = max(first_two, key=speed_of)["settings"]
    print(f"best: {best}", flush=True)
    return {"best": best, "tried": tried}


def speed_of(run: dict[str, Any]) -> float:
    return run["tokens_per_second"]


def race(bench: Bench, contenders: dict[str, Contender], repeats: int) -> None:
    """Each contender in turn, so that a slow spell hits all."""
    for repeat in range(repeats):
        for name, one in contenders.items():
            if repeat and OURS in contenders:
                ours = contenders[OURS].runs[0]["wall_seconds"]
                if one.runs[0]["wall_seconds"] > HOPELESS * ours:
                    continue
            one.runs.append(measured(one.command("full"), bench))
            if not repeat:
                shutil.copytree(bench.folder / "out", bench.folder / "kept" / name, ignore=only_the_adapter)
            print(f"{bench.shape} {repeat + 1}/{repeats} {name}: {one.runs[-1]}", flush=True)


def memory_cells(bench: Bench) -> dict[str, dict[str, float]]:
    """Peak memory and speed at equal micro-batch and checkpointing, on the rows of a probe."""
    found = {}
    for wanted in ("false", "true"):
        found[f"checkpointing {wanted}"] = {
            OURS: measured(ours(bench, "probe", f"run.gradient_checkpointing={wanted}"), bench),
            "trl": measured(
                trls(bench, "probe", {"micro": bench.micro} | TRL_START | {"gradient_checkpointing": wanted}), bench
            ),
        }
        print(f"{bench.shape} {list(found.items())[-1]}", flush=True)
    return {
        cell: {name: {key: run[key] for key in ("peak_gib", "tokens_per_second")} for name, run in runs.items()}
        for cell, runs in found.items()
    }


def ours(bench: Bench, rows: str, *overrides: str) -> list[str]:
    recipe = bench.folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {bench.folder}/model}}\nadapter: {{rank: 16, alpha: 32}}\n"
        f"data: {{train: {bench.folder}/rows/{rows}/train.jsonl}}\n"
        f"run: {{effective_batch: {bench.batch}, micro_batch: {bench.micro}}}\noutput_dir: {bench.folder}/out\n"
        "trainer: {num_train_epochs: 1, learning_rate: 2e-4, lr_scheduler_type: constant, logging_steps: 1, "
        "save_strategy: no}\n"
    )
    return [sys.executable, "scripts/sft.py", str(recipe), *overrides]


def trls(bench: Bench, rows: str, settings: dict[str, Any]) -> list[str]:
    script = Path(importlib.util.find_spec("trl").origin).parent / "scripts/sft.py"  # type: ignore[union-attr, arg-type]
    micro, flags = settings["micro"], [f"--{key}={value}" for key, value in settings.items() if key != "micro"]
    accumulated = bench.batch // micro
    if settings.get("packing"):  # a pack of 1024 tokens stands for as many rows as fill it
        accumulated = max(1, round(bench.batch * mean_tokens(bench, rows) / 1024))
    return [
        sys.executable, str(script), f"--model_name_or_path={bench.folder}/model",
        f"--dataset_name={bench.folder}/rows/{rows}", f"--output_dir={bench.folder}/out", "--use_cpu=true", "--use_peft",
        "--lora_r=16", "--lora_alpha=32", "--lora_dropout=0", "--lora_target_modules=all-linear", "--learning_rate=2e-4",
        "--lr_scheduler_type=constant", f"--per_device_train_batch_size={micro}",
        f"--gradient_accumulation_steps={accumulated}", "--num_train_epochs=1", "--logging_steps=1",
        "--save_strategy=no", "--report_to=none", *flags,
    ]  # fmt: skip


def factories(bench: Bench, rows: str, settings: dict[str, Any]) -> list[str]:
    micro = settings["micro"]
    own = {key: value for key, value in settings.items() if key != "micro"}
    own |= {"per_device_train_batch_size": micro, "gradient_accumulation_steps": bench.batch // micro}
    path = bench.folder / "llamafactory.yaml"  # JSON is YAML; their reader of .json files fails
    path.write_text(json.dumps(llamafactory_settings(bench.folder, rows, own)))
    return [str(bench.factory), "-m", "llamafactory.cli", "train", str(path)]


def mean_tokens(bench: Bench, rows: str) -> float:
    """Tokens of a mean row, by the rows that all contenders train on."""
    count = len((bench.folder / "rows/full/train.jsonl").read_text().splitlines())
    return bench.tokens / count


def measured(command: list[str], bench: Bench, limit: float | None = None) -> dict[str, Any]:
    """One whole process: its times, its peak memory, its losses.

    Raises:
        RuntimeError: If it fails, or leaves no adapter.
        subprocess.TimeoutExpired: If it takes longer than `limit` seconds.
    """
    shutil.rmtree(bench.folder / "out", ignore_errors=True)
    shutil.rmtree(bench.folder / "cache", ignore_errors=True)  # nothing is served from an earlier run's
    cache = {name: f"{bench.folder}/cache/{name}" for name in ("HF_DATASETS_CACHE", "LORASMITH_CACHE")}
    environment = {**os.environ, **cache, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    environment |= {"DISABLE_VERSION_CHECK": "1", "TORCHINDUCTOR_CACHE_DIR": f"{bench.folder}/cache/inductor"}
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    updates, output = [], []
    try:
        for line in lines(process, start, limit):
            now = time.perf_counter() - start
            output.append(line)
            if re.search(r"'loss'|^step \d+/\d+ ", line):
                updates.append((now, line))
    except BaseException:  # its time is over, or ours: nothing is left running, a compiler's helpers neither
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = status
    if status or not (bench.folder / "out/adapter_model.safetensors").exists():
        raise RuntimeError(f"{' '.join(command)} failed:\n{''.join(output)[-3000:]}")
    events = our_events(bench.folder / "out") or [event_of(line) for _, line in updates]
    seconds = [now for now, _ in updates]
    tokens = [event["tokens"] for event in events]
    spans = seconds[-1] - seconds[0]
    return {
        "tokens_per_second": round((tokens[-1] - tokens[0]) / spans, 2) if len(seconds) > 1 else 0.0,
        "wall_seconds": round(wall, 2),
        "first_step_seconds": round(seconds[0], 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_gib": round(usage.ru_maxrss / 2**20, 3),
        "tokens": int(tokens[-1]),
        "losses": [event["loss"] for event in events],
        "gradient_norms": [event["grad_norm"] for event in events],
        "step_seconds": [round(b - a, 2) for a, b in itertools.pairwise(seconds)],
    }


def lines(process: Any, start: float, limit: float | None) -> Any:
    """Lines as they come, until the process ends or its time is over."""
    import selectors

    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            left = None if limit is None else limit - (time.perf_counter() - start)
            if left is not None and (left <= 0 or not selector.select(left)):
                raise subprocess.TimeoutExpired("the probe", limit or 0)
            some = os.read(process.stdout.fileno(), 1 << 16)
            if not some:
                break
            *whole, pending = re.split(rb"[\r\n]", pending + some)
            yield from (line.decode(errors="replace") + "\n" for line in whole)
        yield pending.decode(errors="replace")


def our_events(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [record | {"tokens": record["num_tokens"]} for record in records if "loss" in record]


def event_of(line: str) -> dict[str, float]:
    """The figures of a line that transformers logs for an update."""
    found = {key: float(value) for key, value in re.findall(r"'(\w+)': '?([-+\d.e]+)'?", line)}
    return found | {"tokens": found.get("num_tokens", found.get("num_input_tokens_seen", 0.0))}


def only_the_adapter(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("adapter_")]


def unequal(contenders: dict[str, Contender], held_out: dict[str, float]) -> list[str]:
    """Where a contender's tokens or losses are not ours, past the tolerance; empty if all are equal."""
    if OURS not in contenders:
        return []
    found = []
    mine = contenders[OURS].runs[0]
    for name, one in contenders.items():
        run = one.runs[0]
        if abs(run["tokens"] / mine["tokens"] - 1) > 1e-3:
            found.append(f"{name} trained on {run['tokens']} tokens, we on {mine['tokens']}")
        if not one.reorders:
            off = max(abs(a / b - 1) for a, b in zip(run["losses"], mine["losses"], strict=True))
            if off > LOSS_TOLERANCE["training"]:
                found.append(f"{name}: a training loss is {off:.2%} off ours")
        off = abs(held_out[name] / held_out[OURS] - 1)
        if off > LOSS_TOLERANCE["held-out, in another order" if one.reorders else "held-out"]:
            found.append(f"{name}: the held-out loss is {off:.2%} off ours")
    return found


def ask(*words: Any, python: Path | None = None) -> Any:
    """What a call of speed_inputs.py answers; a process of its own, so that this one stays small."""
    command = [str(python or sys.executable), str(Path(__file__).parent / "speed_inputs.py"), *map(str, words)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1", "LORASMITH_CACHE": os.devnull}
    with tempfile.TemporaryDirectory() as cache:
        environment |= {"HF_DATASETS_CACHE": cache, "LORASMITH_CACHE": cache}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def versions(factory: Path | None) -> dict[str, str]:
    from importlib.metadata import version

    found = {name: version(name) for name in ("torch", "transformers", "trl", "peft")}
    if factory:
        code = "from importlib.metadata import version as v; print(v('llamafactory'), v('transformers'))"
        done = subprocess.run([str(factory), "-c", code], capture_output=True, text=True, check=True)
        found["llamafactory"], found["llamafactory's transformers"] = done.stdout.split()
    return found


def region(report: dict[str, Any]) -> str:
    """What stands between the marks of README.md."""
    threads = report["machine"].rpartition(", ")[2]
    parts = ["![tokens/s, wall time and peak memory by contender](docs/speed.png)"]
    for shape, one in report["shapes"].items():
        about = (
            f"**{shape}** ({one['says']}), {one['rows']}: {one['tokens']:,} tokens in {one['updates']} updates of "
            f"{one['batch']} rows, micro-batch {one['micro']}, a CPU with {threads}. Medians."
        )
        parts += [about, table(one), " ".join([against(one), *memory_words(one)])]
    return "\n\n".join(parts)


def table(one: dict[str, Any]) -> str:
    """A shape's medians as a Markdown table."""
    rows = [
        "| | tokens/s | of the matmul rate | first update | command to adapter | CPU time | peak memory | held-out loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    most = max(found["runs"] for found in one["median"].values())
    for name, found in one["median"].items():
        once = f" ({found['runs']} of {most} runs)" if found["runs"] < most else ""
        rows.append(
            f"| {name}{once} | {found['tokens_per_second']:,.0f} | {found['share_of_matmul']:.0%} | "
            f"{found['first_step_seconds']:.1f} s | {found['wall_seconds']:.1f} s | {found['cpu_seconds']:.0f} s | "
            f"{found['peak_gib']:.2f} GiB | {one['held_out_loss'][name]:.4f} |"
        )
    return "\n".join(rows)


def against(one: dict[str, Any]) -> str:
    """Our speed over that of the others, in words."""
    if OURS not in one["median"] or len(one["median"]) == 1:
        return ""
    mine = one["median"][OURS]
    ratios = [
        f"{mine['tokens_per_second'] / other['tokens_per_second']:.2f} times that of {name}"
        for name, other in one["median"].items()
        if name != OURS
    ]
    words = f"The speed is {', '.join(ratios)}."
    if one["tried"].get("trl", {}).get("tried"):
        best, tried = one["tried"]["trl"]["best"], one["tried"]["trl"]["tried"]
        changes = ", ".join(f"{key} {value}" for key, value in best.items())
        words += f" By hand trl got {changes}; tried were {'; '.join(name for name in tried if name != 'start')}."
    return words


def memory_words(one: dict[str, Any]) -> list[str]:
    cells = [
        f"{found[OURS]['peak_gib']:.2f} against {found['trl']['peak_gib']:.2f} GiB "
        f"{'with' if cell.endswith('true') else 'without'} checkpointing"
        for cell, found in one["memory"].items()
    ]
    return [f"Peak memory against trl's at equal micro-batch, in float32: {', '.join(cells)}."] if cells else []


def with_region(readme: str, text: str) -> str:
    """README.md with the text between the marks."""
    before, rest = readme.split(MARKS[0])
    return f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


def draw(report: dict[str, Any], path: Path) -> None:
    """Bars of tokens/s, wall time and peak memory; a row of panels a shape."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    panels = (
        ("tokens_per_second", "tokens/s"),
        ("wall_seconds", "command to adapter, s"),
        ("peak_gib", "peak memory, GiB"),
    )
    shapes = report["shapes"]
    figure, axes = pyplot.subplots(len(shapes), 3, figsize=(10, 0.6 + 1.7 * len(shapes)), squeeze=False, sharey="row")
    for row, (shape, one) in zip(axes, shapes.items(), strict=True):
        names = list(one["median"])
        for axis, (key, title) in zip(row, panels, strict=True):
            values = [one["median"][name][key] for name in names]
            colors = ["#c8501e" if name == OURS else "#9aa5b1" for name in names]
            bars = axis.barh(names, values, color=colors)
            axis.bar_label(
                bars, [f"{value:,.0f}" if value >= 20 else f"{value:.2f}" for value in values], padding=3, fontsize=8
            )
            axis.set_title(f"{shape}: {title}", fontsize=9)
            axis.set_xlim(0, 1.2 * max(values))
            axis.tick_params(labelsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def absolute(path: str) -> Path:
    """Not resolved: an environment's Python is a link, and works as one only."""
    return Path(path).absolute()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, help="updates of a run; by default the shape's own number")
    parser.add_argument(
        "--rows", type=absolute, default=ROOT.parent / "shared/data", help="folder of alpaca's and gsm8k's rows"
    )
    parser.add_argument("--only", default="", help="only contenders whose name matches this; nothing is written")
    parser.add_argument(
        "--llamafactory", type=absolute, metavar="PYTHON", help="the Python of LLaMA-Factory's environment"
    )
    parser.add_argument("--tunings", default="", help="only settings by hand whose name matches this are tried")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="no memory cells")
    parser.add_argument("--quick", action="store_true", help="no probes and no memory cells: to try the program")
    parser.add_argument("--out", type=absolute, default=Path(__file__).parent, help="where speed.json goes")
    parser.add_argument("--no-write", dest="write", action="store_false", help="print only")
    return parser.parse_args()


if __name__ == "__main__":
    main()
