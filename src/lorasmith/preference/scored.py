"""trl's reward trainer over pairs that are tokens already."""

from typing import Any

from lorasmith.preference.trainer import paired

MEANS = ("accuracy", "margin", "mean_reward")  # that trl takes over batches


def scored(trainer: type[Any]) -> type[Any]:
    """`paired` for trl's RewardTrainer, with the means of an evaluation over pairs.

    trl takes them over batches, so that a pair in a last, smaller batch counts more than another.
    """

    class ScoreTrainer(paired(trainer)):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not self.model.training:
                for name in MEANS:
                    values = self._metrics["eval"][name]
                    values += values[-1:] * (self.batch_count(inputs) - 1)
            return found

    ScoreTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return ScoreTrainer
