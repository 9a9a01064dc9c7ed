"""Run by test_sharing.py in a process of its own: one with threads must not be forked.

The first process of a machine reads and tokenizes; the others map the same rows, or end with it."""

import faulthandler
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from array import array
from pathlib import Path

import pytest
import trl.chat_template_utils  # noqa: F401  (once, not in every process that is forked)
from conftest import BASE, write_rows
from transformers import AutoTokenizer

from lorasmith.data import sharing
from lorasmith.data.examples import Example, examples_as_dataset
from lorasmith.data.judged_tokens import JudgedTokens
from lorasmith.data.mapped import MappedRows, map_rows, read_made, write_made
from lorasmith.data.pair_tokens import PairTokens
from lorasmith.data.prepare import as_dataset, prepare, read_train_and_eval
from lorasmith.data.prepare_pairs import pairs_as_dataset, pairs_as_sequences
from lorasmith.data.prepare_prompts import PromptTokens
from lorasmith.data.prompts import Prompt
from lorasmith.data.render import TokenRow
from lorasmith.errors import DataError
from lorasmith.recipe import Data
from lorasmith.runs import ending

HANGS = 100  # seconds
FORK = multiprocessing.get_context("fork")


def ids(*numbers: int) -> array:
    return array("i", numbers)


ROWS = {
    "tokens": [TokenRow(f"é.jsonl:{i}", ids(*range(i)), ids(-100, *range(1, i))) for i in range(1, 9)],
    "pairs": [PairTokens(f"p:{i}", ids(1, i), ids(2), ids(*range(i))) for i in range(1, 9)],
    "judged": [JudgedTokens(f"j:{i}", ids(), ids(i), i % 2 == 0) for i in range(1, 9)],
    "prompts": [PromptTokens(Prompt(f"q:{i}", [{"role": "user"}], columns={"n": [i]}), ids(i)) for i in range(1, 9)],
    "one label": [Example(f"c:{i}", ids(i), ids(-100), i, "blue", ids(0)) for i in range(1, 9)],
    "many labels": [Example(f"c:{i}", ids(i), ids(-100), [0.0, 1.0 * i], "", None) for i in range(1, 9)],
    "a number": [Example(f"c:{i}", ids(i), ids(-100), i / 3, "", None) for i in range(1, 9)],
    "tags": [Example(f"c:{i}", ids(i, i), ids(-100, i), [-100, i], "O", None) for i in range(1, 9)],
    "some types": [Example(f"c:{i}", ids(i), ids(-100), (i, None), "", ids(1) if i % 2 else None) for i in range(1, 9)],
}


@pytest.mark.parametrize("name", ROWS)
def test_mapped_rows_are_the_rows(name, tmp_path, monkeypatch):
    monkeypatch.setattr("lorasmith.data.mapped.AT_ONCE", 3)
    rows = ROWS[name]
    mapped = map_rows(rows, tmp_path, "train", None)
    write_made((mapped, {"of": 1}), tmp_path / "made")
    again, _ = read_made(tmp_path / "made")
    for found in (mapped, again):
        assert list(found) == rows == found[:]
        assert [found[i] for i in (0, 4, -1)] == [rows[i] for i in (0, 4, -1)] == [*found[0:8:4], found[7]]
        assert len(found) == 8
        assert list(map(repr, found)) == list(map(repr, rows))  # types of numbers too
        with pytest.raises(IndexError):
            found[8]


@pytest.mark.parametrize(
    ("name", "build"),
    [("tokens", as_dataset), ("pairs", pairs_as_dataset), ("pairs", pairs_as_sequences), ("tags", examples_as_dataset)],
)
def test_the_data_set_of_mapped_rows_is_that_of_the_rows_and_outlives_its_file(name, build, tmp_path):
    rows = ROWS[name]
    mapped = map_rows(rows, tmp_path, "train", None if build is as_dataset else build)
    for path in tmp_path.iterdir():
        path.unlink()
    one, other = sharing.dataset_of(mapped, build, "f" * 64), build(rows)
    assert one[:] == other[:]
    assert one.features == other.features
    assert pickle.loads(pickle.dumps(one))[:] == other[:]


def test_a_file_that_asks_for_anything_but_rows_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/harm",)

    write_made(Harmful(), tmp_path / "made")
    with pytest.raises(pickle.UnpicklingError, match="no class of rows"):
        read_made(tmp_path / "made")
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Run a function in processes of one launch and give their exit codes and what they wrote to stderr."""
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    ports = iter(range(20000, 30000))

    def process(rank: int, count: int, port: int, main) -> None:
        sys.stdout = sys.stderr = open(tmp_path / f"err.{rank}", "a")  # noqa: SIM115
        faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.stderr)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= {"WORLD_SIZE": str(count), "MASTER_PORT": str(port)}
        monkeypatch.setattr(ending, "FIRST_TELLS", 0.3)
        ending.run_script(lambda: main(rank))
        sharing.abandon(0)  # at an exit of its own; that of a forked process asks nobody

    def launch(main, count: int = 2, wait: bool = True):
        port = next(ports)
        started = [FORK.Process(target=process, args=(rank, count, port, main), daemon=True) for rank in range(count)]
        for one in started:
            one.start()
        if not wait:
            return started
        for one in started:
            one.join(120)
        return [one.exitcode for one in started], [(tmp_path / f"err.{r}").read_text() for r in range(count)]

    return launch


@pytest.fixture
def rows_file(tmp_path):
    return write_rows(tmp_path / "r.jsonl", *[{"question": f"q{i}", "answer": f"lamp {i}"} for i in range(40)])


def prepared(rows_file: Path, then=lambda: None):
    """Rows as sft.py makes them."""
    section = Data(train=str(rows_file), eval_fraction=0.2)

    def read():
        then()
        return read_train_and_eval(section, 7)

    reading = sharing.first_reads(read)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    return sharing.shared(lambda: prepare(section, tokenizer, *reading(), 64))


def left(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache/ranks").iterdir())


def test_the_first_of_three_processes_reads_and_the_others_have_its_rows(launched, rows_file, tmp_path):
    def main(rank: int) -> None:
        rows = prepared(rows_file, lambda: (tmp_path / f"read.{rank}").touch())
        assert isinstance(rows.train, MappedRows)
        sets = as_dataset(list(rows.train))[:], sharing.dataset_of(rows.train, as_dataset, rows.fingerprint)[:]
        assert sets[0] == sets[1]
        (tmp_path / f"found.{rank}").write_text(
            f"{rows.fingerprint} {rows.accounts} {list(rows.eval)} {rows.eval_rows}"
        )

    codes, _ = launched(main, 3)
    assert codes == [0, 0, 0]
    alone = prepared(rows_file)
    wanted = f"{alone.fingerprint} {alone.accounts} {alone.eval} {alone.eval_rows}"
    assert {(tmp_path / f"found.{rank}").read_text() for rank in range(3)} == {wanted}
    assert [path.name for path in tmp_path.glob("read.*")] == ["read.0"]
    assert left(tmp_path) == []


def test_two_launches_at_once_do_not_meet(launched, tmp_path):
    files = [write_rows(tmp_path / f"{n}.jsonl", *[{"text": f"{n} {i}"} for i in range(30)]) for n in ("one", "other")]

    def main(name: str):
        def run(rank: int) -> None:
            rows = prepared(files[0] if name == "one" else files[1], lambda: time.sleep(0.3))
            (tmp_path / f"{name}.{rank}").write_text(rows.fingerprint)

        return run

    for one in [*launched(main("one"), wait=False), *launched(main("other"), wait=False)]:
        one.join(120)
        assert one.exitcode == 0
    texts = [[(tmp_path / f"{name}.{rank}").read_text() for rank in (0, 1)] for name in ("one", "other")]
    assert texts[0][0] == texts[0][1] != texts[1][0] == texts[1][1]
    assert left(tmp_path) == []


def test_a_broken_row_is_told_once_and_all_end_with_code_2(launched, rows_file, tmp_path):
    rows_file.write_text(rows_file.read_text() + '{"question": "q"}\n')

    def main(rank: int) -> None:
        time.sleep(0.7 * rank)  # the others come when it is over
        prepared(rows_file)

    codes, told = launched(main, 3)
    assert codes == [2, 2, 2]
    assert (
        told[0].splitlines()[-1]
        == f"error: {rows_file}:41: field `answer` is missing; the rows are question+answer. Fix or remove the line."
    )
    assert told[0].count("error") == 1
    assert told[1:] == ["", ""]
    assert left(tmp_path) == []


def test_a_failure_after_the_rows_were_read_ends_all_too(launched, rows_file, tmp_path):
    def main(rank: int) -> None:
        reading = sharing.first_reads(lambda: time.sleep(0.5))

        def make():
            reading()
            raise DataError("no row is left")

        sharing.shared(make)

    codes, told = launched(main)
    assert (codes, told) == ([2, 2], ["error: no row is left\n", ""])
    assert left(tmp_path) == []


def test_others_end_when_the_first_is_killed_and_the_next_launch_removes_what_it_left(launched, rows_file, tmp_path):
    def killed() -> None:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    codes, told = launched(lambda rank: prepared(rows_file, killed))
    assert codes == [-signal.SIGKILL, 5]
    assert (
        told[1]
        == "rank 1: error: the first process of this machine died before the rows were ready. Start the run again.\n"
    )
    assert len(left(tmp_path)) == 1
    codes, _ = launched(lambda rank: prepared(rows_file))
    assert codes == [0, 0]
    assert left(tmp_path) == []


def test_on_a_full_disk_each_process_works_for_itself(launched, rows_file, tmp_path):
    def main(rank: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # of any file that is written
        rows = prepared(rows_file)
        assert type(rows.train) is list
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        (tmp_path / f"found.{rank}").write_text(rows.fingerprint)

    codes, told = launched(main)
    assert codes == [0, 0], told
    assert "warning: rows are not shared among processes" in told[0]
    assert "File too large" in told[0]
    assert {(tmp_path / f"found.{rank}").read_text() for rank in (0, 1)} == {prepared(rows_file).fingerprint}
    assert left(tmp_path) == []


def test_who_waits_in_vain_for_a_beginning_works_for_itself(launched, rows_file, tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "BEGINS", 0.2)

    def main(rank: int) -> None:
        if rank == 1:
            assert type(prepared(rows_file).train) is list

    assert launched(main)[0] == [0, 0]


def test_a_process_alone_writes_nothing(rows_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert type(prepared(rows_file).train) is list
    assert not (tmp_path / "cache").exists()
