"""Slurm's sbatch, srun and scontrol on one machine: what a batch script sees of them, for two nodes.

Installed by `install` as programs of these names. A node is an address of the loopback network. Options that the real
programs do not have are refused.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

JOB, NODES = "4242", 2
SBATCH = {  # the options that launchers/ uses, as `man sbatch` has them, and what their values look like
    "job-name": r"\w+", "nodes": r"\d+", "gpus-per-node": r"\d+", "cpus-per-task": r"\d+", "time": r"\d\d:\d\d:\d\d",
    "ntasks-per-node": "1", "signal": r"([RB]:)?USR1@\d+", "requeue": "", "open-mode": "append|truncate",
    "output": r"[\w%.-]+",
}  # fmt: skip
SRUN = {"kill-on-bad-exit": "[01]", "wait": r"\d+"}


def install(folder: Path) -> Path:
    """Write the three programs into a folder, to be put before the others on PATH."""
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol"):
        program = folder / name
        program.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"import slurm_stubs\nsys.exit(slurm_stubs.{name}(sys.argv[1:]))\n"
        )
        program.chmod(0o755)
    return folder


def checked(words: list[str], known: dict[str, str]) -> dict[str, str]:
    """Options by name, each one that the real program has."""
    found = {}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        assert re.fullmatch(known[name], value), word
        found[name] = value
    return found


def directives(script: str) -> dict[str, str]:
    """The #SBATCH lines of a script; as in Slurm, those behind the first command are not read."""
    found = []
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            found.append(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    return checked(found, SBATCH)


def sbatch(words: list[str]) -> int:
    """Run a batch script with its output in the log it names, again after each requeue."""
    script = Path(words[0])
    options = directives(script.read_text())
    log, count = Path(options["output"].replace("%j", JOB)), 0
    nodes = {"SLURM_JOB_NODELIST": f"127.0.0.[1-{NODES}]", "SLURM_JOB_NUM_NODES": str(NODES), "SLURM_JOB_ID": JOB}
    while True:
        environment = {**os.environ, **nodes} | ({"SLURM_RESTART_COUNT": str(count)} if count else {})
        with log.open("a" if options["open-mode"] == "append" else "w") as out:
            code = subprocess.run(["bash", script], env=environment, stdout=out, stderr=out).returncode
        requeued = Path("requeued")
        if not requeued.exists():
            return code
        assert "requeue" in options
        requeued.unlink()
        count += 1


def srun(words: list[str]) -> int:
    """Run a command once a node, and give the highest exit code, as srun does."""
    first = next(at for at, word in enumerate(words) if not word.startswith("--"))
    checked(words[:first], SRUN)
    tasks = []
    for node in range(NODES):
        environment = {**os.environ, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node)}
        tasks.append(subprocess.Popen(words[first:], env=environment))
    codes = [task.wait() for task in tasks]
    return max(128 - code if code < 0 else code for code in codes)


def scontrol(words: list[str]) -> int:
    """`show hostnames LIST` and `requeue JOB`."""
    if words[:2] == ["show", "hostnames"]:
        start, first, last = re.fullmatch(r"(.*)\[(\d+)-(\d+)\]", words[2]).groups()  # type: ignore[union-attr]
        sys.stdout.write("".join(f"{start}{number}\n" for number in range(int(first), int(last) + 1)))
        return 0
    assert words == ["requeue", JOB]
    Path("requeued").touch()
    return 0
