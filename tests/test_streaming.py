"""Rows of a storage: fetched once and checked by their mark, or streamed, and resumed where the stream stood."""

import gzip
import json
import shutil
import threading
from array import array
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pyarrow
import pytest
from accelerate.data_loader import BatchSamplerShard
from conftest import NO_EVAL, launch, losses, sft, write_rows
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import AutoTokenizer

from lorasmith.data import streams
from lorasmith.data.formats import read_rows
from lorasmith.data.render import TokenRow
from lorasmith.data.streaming import RowStream, StreamedRows, open_stream, prepare_stream
from lorasmith.data.streams import Position, ShardReader, shards_of
from lorasmith.errors import DataError, FitError, RecipeError
from lorasmith.recipe import load_recipe


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Server(ThreadingHTTPServer):
    """Files by path, with ranges of bytes and ETags; remembers what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int, int]] = []
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.reply(body=False)

    def do_GET(self) -> None:
        self.reply(body=True)

    def reply(self, body: bool) -> None:
        data = self.server.files.get(self.path)
        first, last = 0, len(data or b"") - 1
        if data is not None and (asked := self.headers.get("Range")):
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(last, int(end or last))
        self.send_response(404 if data is None else 206 if "Range" in self.headers else 200)
        part = (data or b"")[first : last + 1]
        self.send_header("Content-Length", str(len(part)))
        if data is not None:
            self.send_header("ETag", f'"{hash(data)}"')
            self.send_header("Accept-Ranges", "bytes")
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if body:
            self.server.asked.append((self.path, first, last))
            self.wfile.write(part)

    def log_message(self, *words) -> None:
        pass


@pytest.fixture
def server():
    with Server() as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LORASMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_is_fetched_once_and_anew_when_it_changed(server, cache):
    server.files["/r.jsonl"] = lines({"text": "one"}, {"text": "other"})
    address = f"{server.address}/r.jsonl"
    first = read_rows(address).rows
    assert [(row.place, row.text) for row in first] == [(f"{address}:1", "one"), (f"{address}:2", "other")]
    fetches = len(server.asked)
    assert read_rows(address).rows == first
    assert len(server.asked) == fetches
    server.files["/r.jsonl"] = lines({"text": "two"}, {"text": "other"})  # of the same size
    assert read_rows(address).rows[0].text == "two"
    assert not list(cache.rglob("*.part"))


def test_refusals_name_the_address_and_the_line(server):
    server.files["/r.jsonl"] = b'{"text": "a"}\n{"text": \n'
    server.files["/page.jsonl"] = b"<!doctype html><p>Log in"
    with pytest.raises(DataError, match=rf"^{server.address}/r.jsonl:2: not valid JSON"):
        read_rows(f"{server.address}/r.jsonl")
    with pytest.raises(DataError, match=rf"^{server.address}/page.jsonl: a web page, not rows"):
        read_rows(f"{server.address}/page.jsonl")
    with pytest.raises(DataError, match=rf"^{server.address}/none.jsonl: no such file on the storage"):
        read_rows(f"{server.address}/none.jsonl")
    with pytest.raises(DataError, match=r"^memory://none/\*.jsonl: no file matches"):
        read_rows("memory://none/*.jsonl")
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        read_rows("nowhere://x/r.jsonl")


def test_a_file_that_the_disk_cannot_hold_is_not_fetched(server, monkeypatch):
    server.files["/r.jsonl"] = lines({"text": "one"})
    monkeypatch.setattr("lorasmith.data.remote.free_disk", lambda folder: 1000)
    with pytest.raises(FitError, match=r"to fetch, and 0.00 GiB free in .*, or let sft.py stream it"):
        read_rows(f"{server.address}/r.jsonl")
    assert server.asked == []


# The stream.


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def shards():
    """Three files of seven rows, plain and compressed, with empty lines among them."""
    storage = fsspec.filesystem("memory")
    texts = [b"\n".join(lines({"n": 10 * i + j})[:-1] + b"\n" * (j % 2) for j in range(7)) for i in range(3)]
    for name, data in (
        ("r-0.jsonl", texts[0]),
        ("r-1.jsonl.gz", gzip.compress(texts[1], mtime=0)),
        ("r-2.jsonl.zst", zstd(texts[2])),
    ):
        storage.pipe(f"/stream/{name}", data)
    yield shards_of(["memory://stream/r-*"])
    storage.rm("/stream", recursive=True)


def numbered(records):
    return [
        TokenRow(place, array("i", [value["n"]] * (1 + value["n"] % 5)), array("i", [1])) for place, value in records
    ]


def places(stream: RowStream, first: int, count: int) -> list[str]:
    return [row.place.rpartition("/")[2] for row in stream.rows(first, count)]


def test_each_row_comes_once_an_epoch_shuffled_in_its_buffer(shards):
    stream = RowStream(shards, numbered, 5, seed=1)
    found = places(stream, 0, 42)
    in_order = [place for place, _ in ShardReader(shards).records(100)]
    assert len(in_order) == 21
    for epoch in (found[:21], found[21:]):
        assert sorted(epoch) == sorted(place.rpartition("/")[2] for place in in_order)
        assert epoch[:5] != [place.rpartition("/")[2] for place in in_order[:5]]
        assert set(epoch[:5]) == {place.rpartition("/")[2] for place in in_order[:5]}
    assert found[:21] != found[21:]
    assert places(RowStream(shards, numbered, 5, seed=2), 0, 42) != found
    assert places(RowStream(shards, numbered, 1, seed=1), 0, 21) == [place.rpartition("/")[2] for place in in_order]


def test_a_row_is_the_same_from_wherever_the_stream_is_begun_and_however_it_is_asked_for(shards):
    stream = RowStream(shards, numbered, 4, seed=1)
    found = places(stream, 0, 60)
    assert [name for row in range(60) for name in places(RowStream(shards, numbered, 4, seed=1), row, 1)][:5] == found[
        :5
    ]
    ones = RowStream(shards, numbered, 4, seed=1)
    assert [name for row in range(60) for name in places(ones, row, 1)] == found
    assert places(ones, 3, 9) == found[3:12]  # back again
    assert len({stream.start_of(row) for row in range(60)}) == 17  # of 4, 4, 4, 4, 4 and 1 rows an epoch
    for row in range(55):
        other = RowStream(shards, numbered, 4, seed=1)
        other.go_on(stream.start_of(row))
        assert places(other, row, 5) == found[row : row + 5]


def test_rows_before_the_last_updates_are_let_go(shards):
    stream = RowStream(shards, numbered, 4, seed=1)
    for row in range(0, 60, 3):
        stream.rows(row, 3)
        assert len(list(stream)) <= 12


def test_a_resumed_stream_asks_for_no_byte_before_its_position(server, monkeypatch):
    monkeypatch.setattr(streams, "READ_AHEAD", 2000)
    server.files["/r.jsonl"] = lines(*({"n": n, "more": "x" * 80} for n in range(1000)))
    shards = shards_of([f"{server.address}/r.jsonl"])
    stream = RowStream(shards, numbered, 50, seed=1)
    found = places(stream, 700, 20)
    start = stream.start_of(700)
    assert start.position == Position(0, 0, 700, start.position.offset)
    server.asked.clear()
    resumed = RowStream(shards, numbered, 50, seed=1)
    resumed.go_on(start)
    assert places(resumed, 700, 20) == found
    assert min(first for _, first, _ in server.asked) == start.position.offset > 60_000
    assert (
        sum(last - first + 1 for _, first, last in server.asked) < 12_000
    )  # 50 rows of 100 bytes, and what was read ahead


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("r.jsonl.gz", gzip.compress(lines(*({"n": n} for n in range(5000))))[:4000], r"r.jsonl.gz:\d+: the compressed data is damaged"),
        ("r.jsonl.zst", zstd(lines(*({"n": n * n % 7919} for n in range(5000))))[:3000], r"r.jsonl.zst:\d+: the compressed data is damaged"),
        ("r.jsonl.gz", lines({"n": 1}), "r.jsonl.gz: not compressed, though"),
        ("r.jsonl", gzip.compress(lines({"n": 1}), mtime=0), "r.jsonl: compressed by gzip"),
        ("r.jsonl", b"\n\n", "r.jsonl: no rows"),
        ("r.csv", b"n\n1\n", r"r.csv: data.streaming reads .jsonl and .ndjson"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_told(name, data, said):
    fsspec.filesystem("memory").pipe(f"/broken/{name}", data)
    with pytest.raises(DataError, match=said):
        RowStream(shards_of([f"memory://broken/{name}"]), numbered, 10_000, seed=1).rows(0, 1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_update_has_the_same_rows_on_any_number_of_processes_each_on_one_of_them(shards, processes):
    def dealt(count: int) -> list[Counter]:
        updates = [Counter() for _ in range(6)]
        for rank in range(count):
            rows = StreamedRows(RowStream(shards, numbered, 5, seed=1), 6, 8, None)
            batches = BatchSampler(SequentialSampler(rows), 2, drop_last=False)
            for at, batch in enumerate(BatchSamplerShard(batches, count, rank)):
                updates[at * 2 * count // 8].update((number, tuple(rows[number]["input_ids"])) for number in batch)
        return updates

    assert dealt(processes) == dealt(1)
    assert all(max(update.values()) == 1 for update in dealt(processes))
    first = [tuple(ids) for _, ids in sorted(dealt(1)[0])]
    assert sorted(first, key=len, reverse=True) == first


# In training.

WORDS = ["model.quantization=none", "model.dtype=float32", "trainer.max_steps=8", "trainer.logging_steps=1", "data.streaming=true",
         "data.shuffle_buffer=30", "run.micro_batch=8", "trainer.save_strategy=steps", "trainer.save_steps=5", "run.keep_checkpoints=true"]  # fmt: skip


@pytest.fixture
def orders(tmp_path) -> str:
    """The quickstart's first rows in two files, one compressed."""
    rows = Path("quickstart/data/train.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"".join(rows[:60]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"".join(rows[60:140]), mtime=0))
    return f"data.train={tmp_path}/*.jsonl*"


def test_a_resumed_run_on_a_stream_has_the_losses_of_the_uninterrupted_one(tmp_path, orders, monkeypatch):
    whole = sft(
        "recipes/quickstart.yaml", *WORDS, *NO_EVAL, orders, "adapter.dropout=0.1", f"output_dir={tmp_path}/whole"
    )
    shutil.copytree(whole / "checkpoint-5", tmp_path / "resumed/checkpoint-5")
    shutil.copy(whole / "run.json", tmp_path / "resumed")
    (tmp_path / "resumed/private").mkdir()
    read: list[Position] = []
    go_to = ShardReader.go_to
    monkeypatch.setattr(ShardReader, "go_to", lambda self, position: (read.append(position), go_to(self, position))[1])
    resumed = sft(
        "recipes/quickstart.yaml", *WORDS, *NO_EVAL, orders, "adapter.dropout=0.1", f"output_dir={tmp_path}/resumed"
    )
    assert losses(resumed) == losses(whole)[5:]
    assert len(losses(resumed)) == 3
    card = (resumed / "README.md").read_text()
    assert "streamed, 128 trained" in card
    assert "of the tokens of its first 30 rows 57.6% are trained" in card
    # Behind the first buffer, which the audit reads: row 80 is of the third one, which begins behind line 60.
    assert read[1] == Position(0, 0, 60, read[1].offset)
    assert (
        json.loads((resumed / "run.json").read_text())["data"]["fingerprint"]
        == json.loads((whole / "run.json").read_text())["data"]["fingerprint"]
    )


def test_a_broken_row_that_comes_later_ends_the_run_with_its_address_and_line(tmp_path, server):
    rows = Path("quickstart/data/train.jsonl").read_bytes().splitlines(keepends=True)[:80]
    rows[61] = b'{"messages": []}\n'
    server.files["/r.jsonl"] = b"".join(rows)
    where = f"data.train={server.address}/r.jsonl"
    with pytest.raises(DataError, match=rf"^{server.address}/r.jsonl:62: messages: empty"):
        sft("recipes/quickstart.yaml", *WORDS, *NO_EVAL, where, f"output_dir={tmp_path}/run")
    events = losses(tmp_path / "run")
    assert len(events) == 2  # of the third, the last micro-batch waits for the next one to be read


@pytest.mark.parametrize(
    ("row", "words", "said"),
    [
        ({"question": "q", "answer": "a " * 200}, [], r":8: 1 of 5 rows are over trainer.max_length"),
        ({"question": "q3", "answer": "a3"}, [], r"held.jsonl:1: the same row is trained on \(.*r.jsonl:8\)"),
        ({"question": "", "answer": "a"}, [], r":8: question: empty"),
        ({"question": "", "answer": "a"}, ["data.on_bad_row=drop"], ""),
        ({"question": "q", "answer": "a " * 200}, ["data.on_too_long=drop"], ""),
    ],
)
def test_rows_of_a_stream_pass_the_checks_of_rows_that_are_read(row, words, said, tmp_path):
    rows = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(10) if n != 3]
    path = write_rows(tmp_path / "r.jsonl", *rows[:7], row, *rows[7:])
    held = write_rows(tmp_path / "held.jsonl", {"question": "q3", "answer": "a3"})
    recipe = load_recipe(
        Path("recipes/quickstart.yaml"),
        ["data.streaming=true", "data.shuffle_buffer=5", "trainer.max_steps=2", f"data.train={path}", f"data.eval={held}",
         "trainer.max_length=64", *words],
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained("quickstart/base")
    stream = prepare_stream(recipe, tokenizer, open_stream(recipe.data)).stream
    assert len(stream.rows(0, 5)) == 5
    if said:
        with pytest.raises(DataError, match=said):
            stream.rows(5, 5)
    else:
        assert [one.place.rpartition(":")[2] for one in stream.rows(5, 4)] != []
        assert {one.place for one in stream.rows(0, 9)} == {f"{path}:{n}" for n in range(1, 11) if n != 8}


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("sft", ["trainer.max_steps=-1"], "data.streaming needs trainer.max_steps"),
        ("sft", ["data.eval=null", "data.eval_fraction=0.1", "trainer.eval_strategy=no"], "data.eval_fraction is `0.1`, which data.streaming does not go with. Set data.eval."),
        ("sft", ["trainer.packing=true"], "trainer.packing is `true`"),
        ("sft", ["trainer.train_sampling_strategy=group_by_length"], "trainer.train_sampling_strategy is `group_by_length`"),
        ("sft", ["trainer.dataloader_num_workers=2"], "trainer.dataloader_num_workers is `2`"),
        ("sft", ["trainer.max_length=null"], "trainer.max_length is `null`"),
        ("sft", ["data.train=[{path: a.jsonl, weight: 2}]"], "data.train is with weights"),
        ("sft", ["data.train=https://me:word@host/r.jsonl"], "data.train holds a password"),
        ("dpo", [], "data.streaming is for sft.py; dpo.py reads all rows"),
        ("text_classification", [], "data.streaming is for sft.py"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_stream_is_refused(script, words, said, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: {name: quickstart/base}\ndata: {train: r.jsonl, streaming: true}\noutput_dir: out\n"
    )
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "r.yaml", ["trainer.max_steps=5", *words], script)
    assert said in str(error.value)


@pytest.mark.slow
def test_two_processes_train_on_a_stream_to_the_losses_of_one(tmp_path, orders):
    for config in ("cpu", "cpu_2_processes"):
        done = launch(
            "-m", "accelerate.commands.launch", "--config_file", f"accelerate_configs/{config}.yaml", "scripts/sft.py",
            "recipes/quickstart.yaml", *WORDS, *NO_EVAL, orders, f"output_dir={tmp_path / config}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = losses(tmp_path / "cpu"), losses(tmp_path / "cpu_2_processes")
    assert len(one) == 8
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5


@pytest.mark.slow
def test_a_broken_row_of_a_stream_is_told_once_by_two_processes(tmp_path, server):
    rows = Path("quickstart/data/train.jsonl").read_bytes().splitlines(keepends=True)[:80]
    rows[61] = b'{"messages": []}\n'
    server.files["/r.jsonl"] = b"".join(rows)
    done = launch(
        "scripts/launch.py", "--config_file", "accelerate_configs/cpu_2_processes.yaml", "scripts/sft.py",
        "recipes/quickstart.yaml", *WORDS, *NO_EVAL, f"data.train={server.address}/r.jsonl", f"output_dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "error:" in line] == [
        f"error: {server.address}/r.jsonl:62: messages: empty; expected a list of messages."
    ]
