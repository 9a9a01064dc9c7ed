"""What processes share is tested where a process without threads can be forked."""

from conftest import launch


def test_what_processes_of_one_machine_share():
    # A process that is forked while pyarrow's allocator clears up in its thread may never come back.
    alone = {"OMP_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    done = launch("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/forked_sharing.py", **alone)
    assert done.returncode == 0, done.stdout[-5000:]
