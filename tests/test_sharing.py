"""What processes share is tested where a process without threads can be forked."""

from conftest import launch


def test_what_processes_of_one_machine_share():
    done = launch("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/forked_sharing.py", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout[-5000:]
