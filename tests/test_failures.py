"""The commonest failures of the libraries end in one line: what happened and what mends it."""

import builtins
import json
import os
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, launch

from lorasmith.failures import explain, known_failures

CUDA = "CUDA out of memory. Tried to allocate 1.30 GiB. GPU 4 has a total capacity of 94.99 GiB."


def error_of(example: str) -> Exception:
    """An exception whose traceback would end with this text."""
    kind, _, message = example.partition(": ")
    name = kind.rpartition(".")[2]
    return (getattr(builtins, name, None) or type(name, (Exception,), {}))(message)


def raised_from(error: Exception) -> Exception:
    """What is caught when a library passes an error on in one of its own."""
    try:
        try:
            raise error
        except Exception as first:
            raise RuntimeError("could not go on") from first
    except RuntimeError as second:
        return second


@pytest.mark.parametrize("failure", known_failures(), ids=lambda failure: failure.id)
def test_the_example_of_a_failure_is_explained_by_it(failure):
    for error in (error_of(failure.example), raised_from(error_of(failure.example))):
        found = explain(error)
        assert found is not None
        assert found.id == failure.id
        assert not re.search(r"[{}]", re.sub(r"\{use_reentrant: false\}", "", found.cause + found.mend))


def test_the_table_is_whole():
    table = known_failures()
    assert len(table) >= 36
    assert len({failure.id for failure in table}) == len(table)
    for failure in table:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", failure.id)
        re.compile(failure.text)
        re.compile(failure.exception)
        assert failure.exit_code in (2, 3, 5)
        assert not failure.cause.endswith(".")
        assert failure.mend.endswith(".")
        assert "\n" not in failure.cause + failure.mend + failure.example
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+|[\w./]+\.\w+", failure.source)


def test_every_key_that_mends_a_failure_is_one_of_the_recipe():
    schema = json.loads((ROOT / "recipes/sft.schema.json").read_text())
    sections = schema["properties"] | schema["$defs"]
    for failure in known_failures():
        for section, key in re.findall(r"\b(model|adapter|data|run|trainer)\.(\w+)", failure.cause + failure.mend):
            known = sections["trainer"] if section == "trainer" else sections[section.capitalize()]
            assert key in known["properties"], (failure.id, section, key)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "memory-error"),
        (OSError(12, "Cannot allocate memory"), "host-out-of-memory"),
        (OSError(28, "No space left on device"), "disk-full"),
        (OSError(122, "Disk quota exceeded", "run/adapter"), "disk-quota"),
        (PermissionError(13, "Permission denied", "run"), "permission-denied"),
        (RuntimeError("CUDA error: out of memory"), "gpu-out-of-memory"),
        (error_of("safetensors_rust.SafetensorError: I/O error: No space left on device (os error 28)"), "disk-full"),
        (error_of("httpx.ReadTimeout: The read operation timed out"), "hub-timeout"),
        (error_of("SafetensorError: Error while deserializing header: header too large"), "safetensors-another-file"),
        (error_of("SafetensorError: Error while deserializing header: incomplete metadata"), "safetensors-cut-short"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_other_forms_of_a_failure_are_known_too(error, expected):
    assert explain(error).id == expected


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("text"),
        AssertionError(),
        FileNotFoundError(2, "No such file or directory", "run.json"),
        ModuleNotFoundError("No module named 'lorasmith.speed'"),
        ImportError("cannot import name 'explain' from 'lorasmith.failures'"),
    ],
    ids=repr,
)
def test_an_unknown_error_is_not_explained(error):
    assert explain(error) is None


def test_an_error_handled_before_does_not_explain_a_later_one():
    later = ValueError("x")
    later.__context__, later.__suppress_context__ = RuntimeError(CUDA), True  # as `raise later from None` leaves it
    assert explain(later) is None


def test_real_errors_of_the_installed_libraries_are_explained(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    save_file({"weight": torch.zeros(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:500])
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    cases = {
        "host-out-of-memory": lambda: torch.empty(1 << 50),
        "index-out-of-range": lambda: torch.nn.functional.embedding(torch.tensor([9]), torch.zeros(4, 2)),
        "size-mismatch": lambda: torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict()),
        "safetensors-cut-short": lambda: load_file(tmp_path / "cut.safetensors"),
        "safetensors-another-file": lambda: load_file(tmp_path / "lfs.safetensors"),
    }
    for expected, fails in cases.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011  the libraries' kinds differ
            fails()
        assert explain(caught.value).id == expected


FAIL = f"raise RuntimeError({CUDA!r})"


def script(*lines: str) -> str:
    """A program like ours, with these lines as its main."""
    imports = "import shutil", "from pathlib import Path", "from lorasmith.runs.ending import enter_run, run_script"
    return "\n".join([*imports, "def main():", *(f"    {line}" for line in lines), "run_script(main)"])


def test_a_known_failure_ends_a_script_in_one_line():
    done = launch("-c", script(FAIL))
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("error: out of memory on the GPU. Lower run.micro_batch")
    assert "trainer.max_length" in line
    assert "model.quantization: nf4" in line
    assert "details" not in line
    assert done.stdout == ""


def test_the_traceback_of_a_known_failure_is_in_the_log_of_its_run(tmp_path):
    (tmp_path / "private").mkdir()
    done = launch("-c", script(f"enter_run(Path({str(tmp_path)!r}))", FAIL))
    [line] = done.stderr.splitlines()
    assert line.endswith(f"(details: {tmp_path}/private/log.txt)")
    log = (tmp_path / "private/log.txt").read_text()
    assert "Traceback" in log
    assert CUDA in log
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["exit_code"] == done.returncode == 3
    assert status["reason"] == line


def test_a_full_disk_ends_in_one_line_though_nothing_can_be_written_any_more(tmp_path):
    (tmp_path / "run/private").mkdir(parents=True)
    run = f"Path({str(tmp_path / 'run')!r})"
    done = launch("-c", script(f"enter_run({run})", f"shutil.rmtree({run})", "raise OSError(28, 'No space left')"))
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("error: the disk is full. Free some space and run the same command again")


def test_a_process_that_fails_alone_is_heard():
    done = launch("-c", script(FAIL), RANK="1")
    assert done.returncode == 3
    [line] = done.stderr.splitlines()
    assert line.startswith("rank 1: error: out of memory on the GPU.")


def test_a_process_that_fails_with_the_first_waits_for_it_to_tell(tmp_path):
    # A launcher ends the others as soon as one has failed: rank 0 would be gone before its line.
    code = script(f"(Path({str(tmp_path)!r}) / 'failing').touch()", FAIL)
    second = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "RANK": "1"}, stderr=subprocess.PIPE
    )
    while not (tmp_path / "failing").exists():
        time.sleep(0.05)
    time.sleep(2)
    assert second.poll() is None
    second.terminate()
    assert second.communicate(timeout=300) == (None, b"")
    assert second.returncode == 3


def test_an_unknown_error_is_our_bug_with_its_traceback():
    done = launch("-c", script("raise ValueError('x')"))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ValueError: x" in done.stderr
    assert done.stderr.splitlines()[-1] == "error: this is a bug in Lorasmith; please report the lines above."


def test_the_page_on_troubleshooting_is_current():
    made = subprocess.run(
        [sys.executable, "docs/make_troubleshooting.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), "run: make reference"
