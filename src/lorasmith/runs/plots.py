"""Pictures of a run: its losses, learning rate and memory."""

from pathlib import Path
from typing import Any


def draw(history: list[dict[str, Any]], folder: Path, method: str = "sft") -> Path:
    """Write loss.png, learning_rate.png and memory.png, and accuracy.png where preferences are learnt.

    Args:
        history: Log records with a step, as in metrics.jsonl.

    Returns:
        The path of loss.png.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    charts = {
        "loss": ({"loss": "training", "eval_loss": "evaluation"}, "loss" + " (nats per token)" * (method == "sft")),
        "learning_rate": ({"learning_rate": ""}, "learning rate"),
        "memory": ({"memory_gib": ""}, "memory (GiB)"),
    }
    for accuracy in ("rewards/accuracies", "accuracy"):
        if any(accuracy in record or f"eval_{accuracy}" in record for record in history):
            charts["accuracy"] = ({accuracy: "training", f"eval_{accuracy}": "evaluation"}, "share of answers in order")
    for name, (series, label) in charts.items():
        figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
        for key, legend in series.items():
            points = [(record["step"], record[key]) for record in history if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=legend, marker="o" if len(points) < 20 else None)
        axes.set(xlabel="update", ylabel=label, title=folder.parent.name)
        axes.grid(alpha=0.3)
        if name in ("loss", "accuracy"):
            axes.set_ylim(bottom=0)
            axes.legend()
        figure.savefig(folder / f"{name}.png", dpi=120)
        pyplot.close(figure)
    return folder / "loss.png"
