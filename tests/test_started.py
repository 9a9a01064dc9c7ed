"""The start: counted from the process's own beginning, and no collector of garbage left off."""

import json
import subprocess
import sys
import time

from conftest import ROOT

PROGRAM = """
import gc, time
time.sleep(1.0)
from lorasmith.started import process_seconds, quick_imports
print(process_seconds())
kept = gc.get_freeze_count()
for _ in range(2):
    try:
        with quick_imports():
            assert not gc.isenabled()
            raise ImportError
    except ImportError:
        pass
    assert gc.isenabled() and gc.get_freeze_count() > kept
"""


def test_time_is_counted_from_the_start_of_the_process():
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1.0 <= float(done.stdout) <= time.monotonic() - start + 0.02  # ticks of 10 ms


def test_a_run_records_its_first_step(trained):
    speed = json.loads((trained / "run.json").read_text())["speed"]
    assert 1 < speed["first_step_seconds"] < 600
