"""Rows on stops, numbers that are none, drift, memory and hangs."""

import json
import os
import random
import shutil
import signal
import time
from typing import Any

from scorecard.trial import BASIC, ROOT, STEPS, chosen, counted, digest, each, losses, place, run, start, stop_behind


def r5(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """TERM, INT and USR1 at random moments, to the run itself: exit 75, at most one step lost, then the same adapter."""
    with place() as folder:
        whole = run(script, [*BASIC, f"output_dir={folder}"]).seconds
        expected = digest(folder)
    rng = random.Random(seed)
    # Not before the first line of main, where the handlers are: a process that only begins loses nothing.
    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    moments = [(kinds[i % 3], 0.05 + rng.random() * (whole - 0.05)) for i in range(sample or 200)]

    def trial(one: tuple[signal.Signals, float]) -> str:
        number, wait = one
        with place() as folder:
            words = [*BASIC, f"output_dir={folder}"]
            pid = start(script, words)
            time.sleep(wait)
            os.kill(pid, number)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            half_trained = code == 75 and digest(folder) not in ("", expected)
            again = run(script, words)
            good = code in (0, 75) and not half_trained and again.code == 0 and digest(folder) == expected
            return "" if good else f"{number.name} after {wait:.2f} s: {code} / {again.code} {again.text[-200:]}"

    return counted("safe", moments, each(moments, trial))


def r9(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A NaN or infinity in a weight, an embedding, a gradient or the loss: stopped before the update, nothing shipped."""
    kinds = ["embedding", "layer", "head", "gradient", "loss", "infinite gradient"]
    faults: list[tuple[str, int, list[str]]] = [(kind, step, []) for kind in kinds for step in (0, 4, STEPS - 1)]
    faults += [
        ("layer", 4, ["run.micro_batch=1"]),
        ("embedding", 4, ["trainer.packing=true", "trainer.max_length=128"]),
    ]
    faults = chosen(faults, sample, seed)

    def trial(one: tuple[str, int, list[str]]) -> str:
        kind, step, extra = one

        def hook() -> None:
            import torch

            from lorasmith.reliability.finite import FiniteGuard

            before = FiniteGuard.on_step_begin

            def on_step_begin(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                before(self, args, state, control, **kwargs)
                if state.global_step != step:
                    return
                model = self.trainer.model
                if kind == "embedding":
                    model.get_input_embeddings().weight.data[5:] = float("nan")
                elif kind == "head":
                    model.get_output_embeddings().weight.data[:] = float("nan")
                elif kind == "layer":
                    next(w for n, w in model.named_parameters() if "layers.2" in n).data[:] = float("nan")
                elif kind == "loss":
                    whole = self.trainer.compute_loss
                    self.trainer.compute_loss = lambda *a, **k: whole(*a, **k) * float("nan")
                else:
                    value = float("nan") if kind == "gradient" else float("inf")
                    weight = next(w for n, w in model.named_parameters() if w.requires_grad)
                    weight.register_hook(lambda grad: torch.full_like(grad, value))

            FiniteGuard.on_step_begin = on_step_begin  # type: ignore[method-assign]

        with place() as folder:
            ended = run(script, [*BASIC, f"output_dir={folder}", *extra], hook)
            named = f"step {step + 1}:" in ended.text and "heldout.jsonl:" in ended.text
            last = step // 2 * 2
            kept = last == 0 or (folder / f"checkpoint-{last}/manifest.json").exists()
            good = ended.code == 4 and named and not digest(folder) and kept
            return "" if good else f"{one}: {ended.code} {ended.text[-300:]}"

    return counted("stopped", faults, each(faults, trial))


DRIFTS = [
    "trainer.learning_rate=1e-3", "seed=7", "trainer.max_steps=9", "run.effective_batch=8", "adapter.alpha=8", "adapter.rank=8",
    "adapter.dropout=0.2", "trainer.lr_scheduler_type=linear", "trainer.warmup_steps=2", "trainer.weight_decay=0.1",
    "trainer.optim=sgd", "trainer.max_grad_norm=0.5", "adapter.method=dora", "model.quantization=nf4", "trainer.max_length=64",
    "data.train=quickstart/data/train.jsonl", "data.train_on=all", "run.gradient_checkpointing=true", "run.micro_batch=2",
    "adapter.target_modules=[q_proj]",
]  # fmt: skip


def r12(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """An interrupted run started with another setting: refused, the setting named with both values."""
    drifts = chosen(DRIFTS, sample, seed)
    with place() as master:
        stop_behind(script, master, 3)

        def trial(change: str) -> str:
            with place() as folder:
                shutil.copytree(master, folder)
                ended = run(script, [*BASIC, f"output_dir={folder}", change])
                named = (change.partition("=")[0] in ended.text or "rows was" in ended.text) and " was " in ended.text
                good = ended.code == 2 and named and (folder / "checkpoint-3").exists()
                return "" if good else f"{change}: {ended.code} {ended.text[-200:]}"

        return counted("refused", drifts, each(drifts, trial))


def r17(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Out of memory at more than k rows: done in halves, with the losses of a run that had memory, to 1e-6."""
    words = [*BASIC, "adapter.dropout=0", "run.effective_batch=8", "run.micro_batch=8"]
    with place() as folder:
        run(script, [*words, f"output_dir={folder}"])
        expected = losses(folder)
    limits = chosen([(1, 0), (2, 0), (4, 0), (4, 3)], sample, seed)

    def trial(one: tuple[int, int]) -> str:
        limit, since = one

        def hook() -> None:
            import torch
            from trl import SFTTrainer

            whole = SFTTrainer.compute_loss

            def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                if len(inputs["input_ids"]) > limit and self.state.global_step >= since and model.training:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
                return whole(self, model, inputs, *args, **kwargs)

            SFTTrainer.compute_loss = compute_loss

        with place() as folder:
            ended = run(script, [*words, f"output_dir={folder}"], hook)
            found = losses(folder)
            close = len(found) == len(expected) and all(
                abs(a - b) < 1e-6 * max(1, abs(b)) for a, b in zip(found, expected, strict=True)
            )
            good = ended.code == 0 and close and ended.text.count("out of memory at") == 1
            return "" if good else f"{limit} rows from step {since}: {ended.code} {ended.text[-300:]}"

    return counted("same_losses", limits, each(limits, trial))


def r17_evaluation(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Memory of a run that evaluates on 256 rows against one on 16: at most 5 % more."""
    lines = (ROOT / "quickstart/data/train.jsonl").read_text(encoding="utf-8").splitlines(True)
    peaks = {}
    for count in (16, 256):
        with place() as folder:
            rows = folder.parent / "rows.jsonl"
            rows.write_text("".join(lines[:count]), encoding="utf-8")
            words = [f"data.eval={rows}", "trainer.eval_strategy=steps", "trainer.eval_steps=4", f"output_dir={folder}"]
            ended = run(script, [*BASIC, *(word for word in words)])
            assert ended.code == 0, ended.text
            peaks[str(count)] = json.loads((folder / "run.json").read_text())["memory"]["measured_gib"]
    growth = peaks["256"] / peaks["16"] - 1
    return {"flat": int(growth <= 0.05), "of": 1, "gib": peaks, "failures": [] if growth <= 0.05 else [str(peaks)]}


def hang(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """A single process that hangs in a step ends by itself within its limit, with stacks and exit code 5."""

    def hook() -> None:
        from trl import SFTTrainer

        whole = SFTTrainer.compute_loss

        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == 3:
                time.sleep(600)
            return whole(self, *args, **kwargs)

        SFTTrainer.compute_loss = compute_loss

    with place() as folder:
        ended = run(script, [*BASIC, f"output_dir={folder}", "run.hang_minutes=0.05"], hook, limit=60)
        status = json.loads((folder / "status.json").read_text())
        stacks = (folder / "private/stacks-rank-0.txt").exists()
        good = (
            ended.code == 5
            and status["exit_code"] == 5
            and stacks
            and "compute_loss" in (folder / "private/stacks-rank-0.txt").read_text()
        )
    return {
        "ended": int(good),
        "of": 1,
        "seconds": round(ended.seconds, 1),
        "failures": [] if good else [ended.text[-300:]],
    }


def cost(script: Any, sample: int, seed: int) -> dict[str, Any]:
    """Training time with every guard over training time without, at a save every 100 steps; in turn, the medians."""

    def without() -> None:
        from lorasmith.reliability import checkpoints
        from lorasmith.reliability.finite import FiniteGuard
        from lorasmith.reliability.stopping import SafeStop

        FiniteGuard.on_pre_optimizer_step = lambda *args, **kwargs: None  # type: ignore[method-assign]
        SafeStop.on_step_end = lambda *args, **kwargs: None  # type: ignore[method-assign]
        checkpoints.commit = lambda folder: None  # type: ignore[assignment]

    words = [*BASIC, "trainer.max_steps=100", "trainer.save_steps=100", "trainer.logging_steps=50"]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(5):
        for name, hook in (("with", None), ("without", without)):
            with place() as folder:
                run(script, [*words, f"output_dir={folder}"], hook)
                seconds[name].append(json.loads((folder / "run.json").read_text())["speed"]["seconds"])
    middle = {name: sorted(found)[len(found) // 2] for name, found in seconds.items()}
    share = middle["with"] / middle["without"] - 1
    return {
        "under_2_percent": int(share < 0.02),
        "of": 1,
        "share": round(share, 4),
        "seconds_of": seconds,
        "failures": [],
    }
