"""Pictures of a run: its losses, learning rate and memory, and what is specific to its method."""

from pathlib import Path
from typing import Any

TRAINING, EVALUATION = "training", "evaluation"
Chart = tuple[dict[str, str], str]  # series by key with their legends, and the label of the axis


def draw(history: list[dict[str, Any]], folder: Path, method: str = "sft") -> Path:
    """Write loss.png, learning_rate.png and memory.png; accuracy.png where preferences are learnt, and where a policy
    is: rewards.png, length.png, and kl.png where it is held near the base.

    Args:
        history: Log records with a step, as in metrics.jsonl.

    Returns:
        The path of the picture to look at first.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Chart] = {
        "loss": (both("loss"), "loss" + " (nats per token)" * (method == "sft")),
        "learning_rate": ({"learning_rate": ""}, "learning rate"),
        "memory": ({"memory_gib": ""}, "memory (GiB)"),
    }
    for accuracy in ("rewards/accuracies", "accuracy"):
        if any(accuracy in record or f"eval_{accuracy}" in record for record in history):
            charts["accuracy"] = (both(accuracy), "share of answers in order")
    if method == "grpo":
        charts |= policy_charts(history)
    for name, (series, label) in charts.items():
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for key, legend in series.items():
            points = [(record["step"], record[key]) for record in history if record.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=legend, marker="o" if len(points) < 20 else None)
        axes.set(xlabel="update", ylabel=label, title=folder.parent.name)
        axes.grid(alpha=0.3)
        if name in ("accuracy", "length", "kl") or (name == "loss" and method != "grpo"):
            axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[1] and len(series) > 1:
            axes.legend()
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)
    return folder / ("rewards.png" if "rewards" in charts else "loss.png")


def both(key: str) -> dict[str, str]:
    """A figure of training and its like of evaluation."""
    return {key: TRAINING, f"eval_{key}": EVALUATION}


def policy_charts(history: list[dict[str, Any]]) -> dict[str, Chart]:
    """What is watched of a policy: each reward, the length of its answers, and its distance to the reference."""
    keys = list(dict.fromkeys(key for record in history for key in record))
    means = [key for key in keys if key.startswith(("rewards/", "eval_rewards/")) and key.endswith("/mean")]
    rewards = {key: f"{key.split('/')[1]}{', held out' * key.startswith('eval_')}" for key in means}
    charts: dict[str, Chart] = {
        "rewards": (rewards, "mean reward"),
        "length": (both("completions/mean_length"), "tokens of an answer, on average"),
    }
    if "kl" in keys:
        charts["kl"] = (both("kl"), "distance to the reference (nats per token)")
    return charts
