"""The order of training rows: a function of seed and epoch alone, with little padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from lorasmith.data.streaming import StreamedRows
from lorasmith.engine import this_engine


class UpdateOrder(Sampler[int]):
    """A random order in which the rows of each update stand from longest to shortest.

    Which rows make an update is what transformers would draw for the same seed and epoch, so the update is the same;
    only its micro-batches hold rows of like length and pad less. No gradient depends on the order inside an update.

    Args:
        lengths: Tokens of each row.
        rows_per_update: Effective batch.
    """

    def __init__(self, lengths: Sequence[int], rows_per_update: int, seed: int) -> None:
        self.lengths = lengths
        self.rows_per_update = rows_per_update
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.randperm(len(self.lengths), generator=self.generator()).tolist()
        for start in range(0, len(drawn), self.rows_per_update):
            yield from sorted(drawn[start : start + self.rows_per_update], key=lambda row: -self.lengths[row])

    def generator(self) -> torch.Generator:
        """The epoch's draw, as accelerate's SeedableRandomSampler begins it."""
        return torch.Generator().manual_seed(self.seed + self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch


class LengthOrder(UpdateOrder):
    """transformers' order by like lengths, anew in each epoch.

    transformers' own LengthGroupedSampler takes its draw from a generator that a resumed run does not have in the same
    state, so that from the second epoch on other rows are seen than without the interruption.
    """

    def __iter__(self) -> Iterator[int]:
        yield from get_length_grouped_indices(list(self.lengths), self.rows_per_update, generator=self.generator())


def with_update_order(trainer: type[Any]) -> type[Any]:
    """The trainer class with `UpdateOrder`, or `LengthOrder` where it is asked for, as its sampler.

    transformers has no seam for a sampler of one's own but this method (related: transformers#46628).
    """

    class OrderedTrainer(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
            rows = self.train_dataset if train_dataset is None else train_dataset
            if isinstance(rows, StreamedRows):
                return SequentialSampler(rows)
            kinds = {"random": UpdateOrder, "group_by_length": LengthOrder}
            if self.args.train_sampling_strategy not in kinds:
                return super()._get_train_sampler(train_dataset)
            per_update = self.args.train_batch_size * self.args.gradient_accumulation_steps * this_engine().replicas
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            lengths = [len(ids) for ids in rows["input_ids"]]
            return kinds[self.args.train_sampling_strategy](lengths, per_update, seed)

    OrderedTrainer.__name__ = trainer.__name__  # trl names cards and logs after the class
    return OrderedTrainer
