"""The ranks of a run train the same thing into the same folder, or it ends before it begins."""

import secrets
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lorasmith.console import is_first_process
from lorasmith.errors import RunError
from lorasmith.reliability.resume import Resume


def check_ranks_agree(folder: Path, contract: dict[str, Any], resume: Resume) -> None:
    """Compare what each rank would train, where it goes on, and whether it sees what the first rank writes.

    Called by all ranks once they are joined, before anything is written into the folder; all of them leave it in the
    same way.

    Args:
        folder: The run's, which the machines must share: a checkpoint has a part of each rank.
        contract: Of this rank (resume.contract).

    Raises:
        RunError: Naming the first rank that differs, its machine, and what to do.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    # A name that no machine can have looked up before: NFS remembers for a while that a file was not there.
    sign = folder / f".seen-{_of_all_ranks(secrets.token_hex(8))[0]}.part"
    folder.mkdir(parents=True, exist_ok=True)
    if is_first_process():
        sign.touch()
    _of_all_ranks(None)  # until it is there
    found = _of_all_ranks((socket.gethostname(), sign.exists(), resume.step, contract))
    if is_first_process():
        sign.unlink()
    why = next((line for line in (_difference(folder, rank, found) for rank in range(len(found))) if line), None)
    if why is not None:
        with suppress(OSError):
            folder.rmdir()  # unless there is something in it
        raise RunError(why)


def _difference(folder: Path, rank: int, found: list[tuple[str, bool, int, dict[str, Any]]]) -> str | None:
    """What is other on a rank than on the first, in one line."""
    (_, _, first_step, first), (host, sees, step, terms) = found[0], found[rank]
    who = f"rank {rank} on {host}"
    if not sees:
        return (
            f"{who} does not see what rank 0 on {found[0][0]} writes into {folder}. Put output_dir on a disk that all "
            "machines share, at the same path."
        )
    if step != first_step:
        return f"{who} finds {folder} at step {step}, rank 0 at step {first_step}. Give the same command again."
    for key in dict.fromkeys([*first, *terms]):
        there, here = (str(one.get(key, "nothing")) for one in (terms, first))
        if there != here:
            return (
                f"{who} would train something else: {key} is {there[:40]}, on rank 0 {here[:40]}. Give all machines "
                "the same rows, model and packages, and set in the recipe what each would choose for itself."
            )
    return None


def _of_all_ranks(value: Any) -> list[Any]:
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
