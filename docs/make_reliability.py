"""Writes docs/reliability.md: what a run survives, and the scorecard's last results.

python docs/make_reliability.py > docs/reliability.md
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
INTRODUCTION = """\
# Nothing lost, no silent wreck

What every training script does, without being asked:

- **Checkpoints count when they are whole.** Files are written and synced to the disk, then a manifest with every size
  and SHA-256, last and in one step. The same command again takes the newest checkpoint that verifies, names the broken
  file of any that it passes over, and sets that one aside. The last good one is never deleted: old ones go after the
  commit of a new one (`trainer.save_total_limit`, two by default). A checkpoint is also written when the last one is
  `run.save_minutes` old (10).
- **A resumed run is the same run.** On a CPU the adapter is byte for byte that of the uninterrupted run, whatever the
  step, with random order, accumulation, packing, DoRA, checkpointing, several epochs, evaluations, nf4. A command that
  would train something else is refused with each field and both values; `--allow-change FIELD` goes on all the same,
  `--overwrite` begins anew, `--resume` demands that there is something to go on with.
- **Signals end it safely.** SIGINT, SIGTERM, SIGUSR1, `run.max_minutes` and a disk that is nearly full end a run at the
  next step, also in the middle of an evaluation, with a checkpoint and exit code 75; no adapter is written from a
  half-trained model. A process whose launcher is gone stops by itself. `python scripts/launch.py scripts/sft.py RECIPE`
  starts a script with accelerate, passes signals on and gives the script's own exit code.
- **Finite or stop.** A loss or gradient that is not finite stops the run before the optimizer's step, with the step,
  the first module, the rows as file:line, and their tokens saved in `private/` (exit code 4).
- **Out of memory in mid-run** on one device: the micro-batch is done again in halves, with the same loss, and such
  batches are halved from there on; kto.py, whose estimate is of a whole micro-batch, ends instead. The worst batch, an
  evaluation of the longest rows and a save are rehearsed before the first step, so that what must fail fails in the
  first minute (exit code 3, with the change that mends it).
- **A preference starts at its reference.** With its own loss (sigmoid) dpo.py must begin at ln 2 to 1e-4, else the
  policy is not what it is compared with, and the run is refused. Whatever is cut, both answers of a pair stay whole
  behind the same prompt.
- **What is written is read back**: the adapter's keys, shapes, finiteness, and that it changes the logits; of a reward
  model also its head. An adapter is refused on other weights than those it was trained on, with tensors missing or
  unknown, or without effect.
- **A hung process ends** after `run.hang_minutes` (30) with the stacks of its threads in `private/` and exit code 5.
- **Known failures of the libraries** end in one line with cause and remedy: `docs/troubleshooting.md`.

Not exact, and known: a run resumed on a GPU, whose kernels need not repeat bit for bit; another `run.micro_batch` or
number of processes, which add in another order.
"""


def main() -> None:
    print(INTRODUCTION)
    print("## Scorecard\n")
    path = ROOT / "benchmarks/reliability.json"
    if not path.exists():
        print("`make reliability`: not measured.")
        return
    report = json.loads(path.read_text())
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import reliability as harness

    print(f"`make reliability` ({report['machine']}; benchmarks/reliability.json has each row's seed). Stock:")
    print("transformers, trl and peft as they are: in bold by the same harness, else measured before by others on the")
    print("same versions.\n")
    print(harness.table(report))


if __name__ == "__main__":
    main()
