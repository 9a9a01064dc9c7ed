"""The clinic for adapters: what is in one, whether it is sound, a smaller one, one in today's layout, one file of it.

    python scripts/adapter.py show ADAPTER
    python scripts/adapter.py COMMAND --help

Exit code 2 when a file is wrong, 4 when an adapter has no effect or holds numbers that are not finite.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from lorasmith.console import plain, say
from lorasmith.errors import DivergedError, LorasmithError, ModelError
from lorasmith.failures import explain
from lorasmith.runs.arguments import positive
from lorasmith.runs.ending import quiet, run_script

MIB = 1 << 20
BATCH = 16  # rows scored at a time


def main() -> None:
    arguments = parse_arguments()
    quiet()
    try:
        arguments.command(arguments)
    except OSError as error:
        if explain(error) is not None:
            raise
        raise LorasmithError(f"{error.filename or 'a file'}: {error.strerror or error}.") from error


def show(arguments: argparse.Namespace) -> None:
    """What an adapter trains, on which base, how big it is and where it comes from."""
    from lorasmith.export import printed
    from lorasmith.export.adapter_file import read_adapter
    from lorasmith.export.contents import describe

    found = describe(read_adapter(arguments.adapter))
    if arguments.json:
        say(json.dumps(found, indent=1))
        return
    for line in [*printed.contents(found), f"next: python scripts/adapter.py check {arguments.adapter}"]:
        tell(line)


def check(arguments: argparse.Namespace) -> None:
    """All that is wrong with an adapter."""
    from dataclasses import asdict

    from lorasmith.export import clinic
    from lorasmith.export.adapter_file import read_adapter

    fingerprint = None
    if arguments.base is not None:
        from lorasmith.models import weight_fingerprint as fingerprint
    findings = clinic.check(read_adapter(arguments.adapter), arguments.base, fingerprint)
    if arguments.json:
        say(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            tell(f"{finding.kind:<9}{finding.text}")
    counted = {kind: sum(finding.kind == kind for finding in findings) for kind in ("wrong", "unsafe", "diverged")}
    if any(counted.values()):
        error = LorasmithError if counted["wrong"] or counted["unsafe"] else DivergedError
        number = sum(counted.values())
        raise error(f"{arguments.adapter}: {number} finding{'s' * (number > 1)} above; mend or fetch it again.")
    if not arguments.json:
        tell(f"{arguments.adapter} is sound" + ("" if arguments.base else "; its base was not looked at (--base)"))
        tell(use_of(arguments.adapter))


def diff(arguments: argparse.Namespace) -> None:
    """How two adapters differ."""
    from lorasmith.export import printed
    from lorasmith.export.adapter_file import read_adapter
    from lorasmith.export.clinic import require_sound
    from lorasmith.export.contents import compare

    pair = read_adapter(arguments.first), read_adapter(arguments.second)
    for adapter in pair:
        require_sound(adapter, numbers=False)
    found = compare(*pair)
    if arguments.json:
        say(json.dumps(found, indent=1))
        return
    for line in printed.difference(found, arguments.first, arguments.second):
        tell(line)


def shrink(arguments: argparse.Namespace) -> None:
    """An adapter of lower rank, with what that costs."""
    from lorasmith.export import adapter_folder, surgery
    from lorasmith.export.adapter_file import read_adapter
    from lorasmith.runs.folder import now, write_json

    adapter = read_adapter(arguments.adapter)
    refuse_existing(arguments.out)
    made = surgery.shrink(adapter, arguments.rank)
    kept = say_energy(made)
    losses = None if arguments.no_loss else losses_of(arguments, adapter, made)
    with adapter_folder.new_folder(arguments.out) as folder:
        adapter_folder.write_adapter(folder, made.config, made.tensors)
        adapter_folder.copy_files(arguments.adapter, folder, adapter_folder.KEPT)
        text = f"Shrunk from rank {adapter.config['r']} to {arguments.rank}: {kept:.4%} of the update's energy is kept."
        if losses is not None:
            text += f" Loss on {losses['rows']} rows: {losses['before']:.4f} before, {losses['after']:.4f} after."
        base = str(adapter.config.get("base_model_name_or_path"))
        adapter_folder.write_card(folder, arguments.adapter, base, "Shrunk", text)
        if adapter.run:
            made_from = {"shrunk_from": arguments.adapter.resolve().name, "rank": adapter.config["r"], "time": now()}
            made_from |= {"energy_kept": kept, "loss": losses, "metrics": adapter.run.get("metrics")}
            write_json(folder / "run.json", shrunk_run(adapter.run, made, arguments.rank) | {"made_from": made_from})
    tell(f"adapter: {arguments.out}")
    tell(use_of(arguments.out))


def shrunk_run(run: dict[str, Any], made: Any, rank: int) -> dict[str, Any]:
    """run.json of the smaller adapter; scores of the larger one are not its own."""
    from lorasmith.export.adapter_file import record_at

    section = record_at(run, "recipe", "adapter") | {"method": "lora", "rank": rank, "alpha": float(rank)}
    size = sum(tensor.numel() for tensor in made.tensors.values())
    counts = record_at(run, "adapter") | {"trainable": size}
    recipe = record_at(run, "recipe") | {"adapter": section}
    return run | {"recipe": recipe, "adapter": counts, "metrics": {"before": None, "after": None}, "evaluations": []}


def losses_of(arguments: argparse.Namespace, adapter: Any, made: Any) -> dict[str, Any] | None:
    """Loss of the adapter as it is and as made, on --data or the rows that its run kept, or None without any."""
    import tempfile

    from lorasmith.data.formats import read_rows
    from lorasmith.data.render import tokenize
    from lorasmith.data.rows import Row
    from lorasmith.evaluation.scores import row_losses
    from lorasmith.export.adapter_file import record_at
    from lorasmith.export.adapter_folder import write_adapter
    from lorasmith.runs.opening import open_model

    if adapter.config.get("task_type", "CAUSAL_LM") not in ("CAUSAL_LM", None):
        tell("loss: not measured, since the adapter is for no language model; compare figures with eval.py")
        return None
    golden = arguments.adapter / "private" / "eval_rows.jsonl"
    settings = record_at(adapter.run, "recipe", "data")
    if arguments.data:
        rows = read_rows(arguments.data, columns=settings.get("columns")).rows
    elif golden.is_file() and golden.stat().st_size:
        try:
            records = [json.loads(line) for line in golden.read_text(encoding="utf-8").splitlines()]
            rows = [Row(**record | {"trained": tuple(record["trained"])}) for record in records]
        except (ValueError, TypeError, KeyError):
            raise ModelError(f"{golden}: broken. Give rows with --data, or --no-loss.") from None
    else:
        tell("loss: not measured, since no rows are here (--data ROWS)")
        return None
    opened: Any = open_model(str(arguments.adapter), str(arguments.base) if arguments.base else None, None)
    train_on = settings.get("train_on", "assistant")
    pairs = [(list(row.input_ids), list(row.labels)) for row in tokenize(opened.tokenizer, rows, train_on)]
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder), made.config, made.tensors)
        opened.model.load_adapter(folder, adapter_name="shrunk")
    found: dict[str, Any] = {"rows": len(pairs)}
    for name, key in (("default", "before"), ("shrunk", "after")):
        opened.model.set_adapter(name)
        scored = row_losses(opened.model, pairs, opened.tokenizer.pad_token_id, BATCH)
        found[key] = sum(one.nats for one in scored) / max(1, sum(one.tokens for one in scored))
    tell(f"loss on {len(pairs)} rows: {found['before']:.4f} before, {found['after']:.4f} after")
    return found


def extract(arguments: argparse.Namespace) -> None:
    """An adapter out of a model that was trained whole."""
    from lorasmith.export import adapter_folder, surgery
    from lorasmith.export.parcel import TOKENIZER_FILES

    refuse_existing(arguments.out)
    rest = "save" if arguments.save_rest else "ignore" if arguments.ignore_rest else "refuse"
    made = surgery.extract(arguments.model, arguments.base, arguments.rank, rest)
    made.config["base_model_name_or_path"] = str(arguments.base)
    for line in made.left_out:
        tell(line)
    kept = say_energy(made)
    with adapter_folder.new_folder(arguments.out) as folder:
        adapter_folder.write_adapter(folder, made.config, made.tensors)
        adapter_folder.copy_files(arguments.model, folder, TOKENIZER_FILES)
        source = arguments.model.resolve().name
        text = f"Taken at rank {arguments.rank} out of `{source}`, which was trained whole: {kept:.4%} of the energy "
        text += "of what training changed in its linear layers is kept."
        adapter_folder.write_card(folder, None, arguments.base.resolve().name, "How it was made", text)
    tell(f"adapter: {arguments.out}")
    tell(f"next: python scripts/adapter.py check {arguments.out} --base {arguments.base}")


def convert(arguments: argparse.Namespace) -> None:
    """An adapter of another layout in that of today's peft."""
    from lorasmith.export import adapter_folder, layouts
    from lorasmith.export.parcel import TOKENIZER_FILES

    refuse_existing(arguments.out)
    config, tensors, lines = layouts.convert(arguments.old, arguments.base, arguments.part, arguments.alpha)
    if arguments.base is not None and not config.get("base_model_name_or_path"):
        config["base_model_name_or_path"] = str(arguments.base)
    for line in lines:
        tell(line)
    old = arguments.old if arguments.old.is_dir() else None
    with adapter_folder.new_folder(arguments.out) as folder:
        adapter_folder.write_adapter(folder, config, tensors)
        if old is not None:
            adapter_folder.copy_files(
                old, folder, (*TOKENIZER_FILES, "run.json", "recipe.yaml", "template_contract.json")
            )
        text = f"Converted from `{arguments.old.name}` to today's layout of peft: {len(lines)} changes."
        adapter_folder.write_card(folder, old, str(config.get("base_model_name_or_path")), "Converted", text)
    tell(f"adapter: {arguments.out}, {len(tensors)} tensors")
    tell(f"next: python scripts/adapter.py check {arguments.out}")


def pack(arguments: argparse.Namespace) -> None:
    """One file of what may be shared."""
    from lorasmith.export import parcel
    from lorasmith.export.adapter_file import read_adapter

    out = arguments.out or Path(f"{arguments.adapter.resolve().name}{parcel.ENDING}")
    out, lines = parcel.pack(read_adapter(arguments.adapter), out)
    for line in lines:
        tell(line)
    tell(f"packed: {out}, {out.stat().st_size / MIB:.2f} MiB")
    tell(f"next: python scripts/adapter.py unpack {out}")


def unpack(arguments: argparse.Namespace) -> None:
    """A parcel's adapter, checked against its manifest."""
    from lorasmith.export import parcel

    name = arguments.file.name
    out = arguments.out or Path(name.removesuffix(parcel.ENDING) if name.endswith(parcel.ENDING) else f"{name}.adapter")
    parcel.unpack(arguments.file, out)
    tell(f"adapter: {out}, every file as its manifest says")
    tell(f"next: python scripts/adapter.py check {out}")


def push(arguments: argparse.Namespace) -> None:
    """Send what `pack` would pack to the hub or a storage."""
    from lorasmith.export.adapter_file import read_adapter
    from lorasmith.export.shipping import push

    place, lines = push(read_adapter(arguments.adapter), arguments.address, arguments.public)
    for line in lines:
        tell(line)
    tell(f"pushed: {place}")
    tell(f"next: python scripts/adapter.py pull {place if '://' in arguments.address else arguments.address}")


def pull(arguments: argparse.Namespace) -> None:
    """Fetch an adapter from the hub or a storage."""
    from lorasmith.export.shipping import pull

    out = pull(arguments.address, arguments.out)
    tell(f"adapter: {out}")
    tell(f"next: python scripts/adapter.py check {out}")


def list_adapters(arguments: argparse.Namespace) -> None:
    """A table of runs."""
    from lorasmith.export import printed
    from lorasmith.export.contents import list_runs

    if not arguments.folder.is_dir():
        raise LorasmithError(f"{arguments.folder}: no such folder. Give the one that holds the runs' folders.")
    found = list_runs(arguments.folder)
    if arguments.json:
        say(json.dumps(found, indent=1))
        return
    if not found:
        tell(f"{arguments.folder} holds no runs; next: python scripts/sft.py RECIPE")
        return
    for line in printed.runs(found):
        tell(line)


def tell(line: str) -> None:
    """Say a line in which somebody else's names may stand."""
    say(plain(line))


def use_of(folder: Path) -> str:
    """The command that an adapter is for."""
    from lorasmith.runs.task_file import REWARD, task_of

    method = task_of(folder).get("method")
    using = f"predict.py {folder} ROWS" if method else f"chat.py {folder}"
    return f"next: python scripts/{f'reward.py {folder} --score ROWS' if method == REWARD else using}"


def say_energy(made: Any) -> float:
    """Say how much of the updates is kept, by kind of module; the share of all."""
    kept: dict[str, float] = made.kept()
    for kind, one in sorted(kept.items()):
        tell(f"energy kept: {one:.4%} of {kind or 'all'}")
    return kept[""]


def refuse_existing(out: Path) -> None:
    """Before anything slow."""
    if out.exists():
        raise ModelError(f"{out} is there already. Choose another --out.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    sub = command("show", show, "what an adapter trains, its size, base, licence and origin")
    sub.add_argument("adapter", type=Path, help="folder of an adapter")
    sub.add_argument("--json", action="store_true", help="all of it as JSON")
    sub = command("check", check, "whether an adapter is sound; every finding is a line")
    sub.add_argument("adapter", type=Path, help="folder of an adapter")
    sub.add_argument("--base", type=Path, help="folder of its base, to compare weights and shapes with")
    sub.add_argument("--json", action="store_true", help="the findings as JSON")
    sub = command("diff", diff, "how two adapters differ in settings and in effect")
    sub.add_argument("first", type=Path, help="folder of an adapter")
    sub.add_argument("second", type=Path, help="folder of another")
    sub.add_argument("--json", action="store_true", help="all of it as JSON, every module by itself")
    sub = command("shrink", shrink, "an adapter of lower rank, by singular values")
    sub.add_argument("adapter", type=Path, help="folder of a LoRA adapter")
    sub.add_argument("--rank", type=positive, required=True, help="rank of the new one")
    sub.add_argument("--out", type=Path, required=True, help="new folder")
    sub.add_argument("--data", help="rows to measure the loss on; default: those that the run kept")
    sub.add_argument("--base", type=Path, help="where the base is, if not where the adapter says")
    sub.add_argument("--no-loss", action="store_true", help="do not measure the loss")
    sub = command("extract", extract, "a LoRA out of a model that was trained whole")
    sub.add_argument("model", type=Path, help="folder of the model")
    sub.add_argument("--base", type=Path, required=True, help="folder of the model that it was trained from")
    sub.add_argument("--rank", type=positive, required=True, help="rank of the LoRA")
    sub.add_argument("--out", type=Path, required=True, help="new folder")
    rest = sub.add_mutually_exclusive_group()
    rest.add_argument("--save-rest", action="store_true", help="save whole what no LoRA can hold, such as norms")
    rest.add_argument("--ignore-rest", action="store_true", help="leave it out")
    sub = command("convert", convert, "an adapter of old peft, kohya or a pickle in today's layout")
    sub.add_argument("old", type=Path, help="folder or file of weights")
    sub.add_argument("--out", type=Path, required=True, help="new folder")
    sub.add_argument("--base", type=Path, help="folder of its base, to mend names by; kohya's need it")
    sub.add_argument("--part", help="which adapter of a kohya file with several, such as lora_te")
    sub.add_argument("--alpha", type=float, help="lora_alpha of peft weights without adapter_config.json")
    sub = command("pack", pack, "one file of an adapter, without private files, paths and secrets")
    sub.add_argument("adapter", type=Path, help="folder of an adapter")
    sub.add_argument("--out", type=Path, help="file to write; default: NAME.lora.tar.gz")
    sub = command("unpack", unpack, "the adapter in such a file, checked")
    sub.add_argument("file", type=Path, help="what pack wrote")
    sub.add_argument("--out", type=Path, help="new folder; default: the file's name")
    sub = command("push", push, "send an adapter to the hub or a storage")
    sub.add_argument("adapter", type=Path, help="folder of an adapter")
    sub.add_argument("address", help="org/name on the hub, or an address such as s3://bucket/folder")
    sub.add_argument("--public", action="store_true", help="let everybody see the hub repository")
    sub = command("pull", pull, "fetch an adapter from the hub or a storage")
    sub.add_argument("address", help="org/name on the hub, or the address of a parcel")
    sub.add_argument("--out", type=Path, help="new folder; default: the adapter's name")
    sub = command("list", list_adapters, "a table of runs with their scores")
    sub.add_argument("folder", type=Path, nargs="?", default=Path("adapters"), help="folder of runs")
    sub.add_argument("--json", action="store_true", help="the table as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
