"""What processes share is tested where a process without threads can be forked."""

from conftest import launch


def test_what_processes_of_one_machine_share():
    # A forked process waits forever for the threads of its parent: those of tokenizers, which a script that ran in this
    # process asked for by the environment, and that of pyarrow's allocator.
    alone = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    done = launch("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/forked_sharing.py", **alone)
    assert done.returncode == 0, done.stdout[-5000:]
