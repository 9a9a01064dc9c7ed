"""The order of rows: upstream's draw, each row once an epoch, sorted only inside an update."""

from collections import Counter

import torch
from accelerate.data_loader import SeedableRandomSampler

from lorasmith.runs.order import LengthOrder, UpdateOrder

LENGTHS = [int(n) for n in torch.randint(5, 90, (53,), generator=torch.Generator().manual_seed(1))]


def test_each_update_has_the_rows_that_transformers_would_draw():
    ours = UpdateOrder(LENGTHS, 8, seed=42)
    theirs = SeedableRandomSampler(LENGTHS, data_seed=42, generator=torch.Generator())
    for epoch in range(3):
        ours.set_epoch(epoch)
        theirs.set_epoch(epoch)
        mine, upstream = list(ours), list(theirs)
        for start in range(0, 53, 8):
            assert Counter(mine[start : start + 8]) == Counter(upstream[start : start + 8])
        assert sorted(mine) == list(range(53))


def test_rows_of_an_update_stand_from_longest_to_shortest_and_pad_less():
    order = list(UpdateOrder(LENGTHS, 16, seed=0))
    drawn = list(SeedableRandomSampler(LENGTHS, data_seed=0, generator=torch.Generator()))
    for start in range(0, 53, 16):
        lengths = [LENGTHS[row] for row in order[start : start + 16]]
        assert lengths == sorted(lengths, reverse=True)

    def padded(rows):
        return sum(4 * max(LENGTHS[row] for row in rows[i : i + 4]) for i in range(0, 52, 4))

    assert padded(order) < 0.85 * padded(drawn)


def test_rows_of_like_length_stand_together_anew_in_each_epoch_and_the_same_after_a_resume():
    many = [int(n) for n in torch.randint(5, 90, (400,), generator=torch.Generator().manual_seed(2))]
    one, other = LengthOrder(many, 8, seed=3), LengthOrder(many, 8, seed=3)
    first = list(one)
    one.set_epoch(1)
    torch.manual_seed(7)
    other.set_epoch(1)
    assert list(one) == list(other) != first
    assert sorted(first) == list(range(400))

    def padded(rows):
        return sum(8 * max(many[row] for row in rows[i : i + 8]) for i in range(0, 400, 8))

    assert padded(first) < 0.8 * padded(list(range(400)))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    one, other = UpdateOrder(LENGTHS, 8, seed=3), UpdateOrder(LENGTHS, 8, seed=3)
    torch.manual_seed(99)
    first = list(one)
    torch.manual_seed(7)
    assert list(other) == first
    other.set_epoch(1)
    assert list(other) != first
    other.set_epoch(0)
    assert list(other) == first
