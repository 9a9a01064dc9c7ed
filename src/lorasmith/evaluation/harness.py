"""Standard benchmarks by lm-evaluation-harness (extra `[eval]`), on the model as it stands in memory."""

import contextlib
import hashlib
import importlib.util
import io
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorasmith.errors import DataError, LorasmithError

LONGEST = 2048  # tokens of a request, where a model has positions for more


def check_installed() -> None:
    """Raises: LorasmithError: Without the package."""
    if importlib.util.find_spec("lm_eval") is None:
        raise LorasmithError("--tasks needs lm-evaluation-harness. Install it: pip install 'lorasmith[eval]'.")


def task_manager(tasks: Sequence[str], include: str | None) -> Any:
    """lm-evaluation-harness' finder of tasks, with a folder of YAML files beside its own.

    Raises:
        LorasmithError: If a task is unknown.
    """
    check_installed()
    if include is not None and not Path(include).is_dir():
        raise LorasmithError(f"--include-path is `{include}`; no such folder.")
    from lm_eval.tasks import TaskManager

    # Its own tasks are thousands of files, which take ten seconds to look through.
    manager = TaskManager(include_path=include, include_defaults=False) if include else None
    if manager is None or not all(manager.match_tasks([name]) for name in tasks):
        manager = TaskManager(include_path=include)
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        where = f" nor in {include}" if include else "; --include-path names a folder with tasks of yours"
        raise LorasmithError(f"--tasks: no task `{unknown[0]}` in lm-evaluation-harness{where}.")
    return manager


def files_fingerprint(include: str | None) -> str:
    """What changes when a task's file in a folder, or a data file that it names, does."""
    digest = hashlib.sha256()
    for path in sorted(Path(include).rglob("*.yaml")) if include else ():
        text = path.read_text(encoding="utf-8")
        digest.update(text.encode())
        for word in re.findall(r"[^\s\"'{}\[\],]+", text):
            if "/" in word or "." in word:
                with contextlib.suppress(OSError):
                    known = Path(word).stat()
                    digest.update(f"{word}:{known.st_size}:{known.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]


def results(
    model: Any, tokenizer: Any, task: str, manager: Any, limit: int | None = None, batch: int = 16
) -> dict[str, dict[str, float]]:
    """The figures of each question of a task: "task:number" -> {"task:figure": value}.

    Args:
        limit: Questions at most.

    Raises:
        DataError: If its data cannot be had, or it has no figure by question.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or LONGEST
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        # Its bars go to stderr, which is for errors here.
        with contextlib.redirect_stderr(io.StringIO()):
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=min(positions, LONGEST))
            found = simple_evaluate(
                wrapped, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=True
            )
    except Exception as error:  # datasets and the hub raise a dozen kinds; all mean that the data is not to be had
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        offline = " It is offline." if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise DataError(f"--tasks {task}: {reason}.{offline} A task over a local file needs no network.") from error
    rows: dict[str, dict[str, float]] = {}
    for name, samples in (found or {}).get("samples", {}).items():
        for sample in samples:
            figures = {
                f"{name}:{_figure(key)}": float(sample[key])
                for key in sample.get("metrics", [])
                if isinstance(sample.get(key), int | float)
            }
            rows.setdefault(f"{name}:{sample['doc_id']}", {}).update(figures)
    if not any(rows.values()):
        raise DataError(f"--tasks {task}: it has no figure of single questions, so nothing can be compared.")
    return rows


def _figure(name: str) -> str:
    return re.sub(r"[^\w.]", "_", name)
