from __future__ import annotations

from collections import deque

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from memssl_core.model.memory import Memory, block_order


@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
def test_ring_keeps_the_latest_whatever_the_batch(slots, batches):
    memory = Memory(slots, 3, generator=torch.Generator().manual_seed(0))
    latest: deque = deque(maxlen=slots)
    pushed = 0
    for step, size in enumerate(batches):
        ids = torch.arange(pushed, pushed + size)
        rows = F.normalize(torch.randn(size, 3), dim=1)
        boxes = torch.rand(size, 4)
        written = memory.push(rows, ids, boxes, step)
        latest.extend(zip(ids.tolist(), rows, boxes, [step] * size, strict=True))
        assert memory.image_id[written].tolist() == ids[max(0, size - slots) :].tolist()
        pushed += size
    assert memory.cursor == pushed % slots and memory.written == pushed
    assert sorted(i for i in memory.image_id.tolist() if i >= 0) == [i for i, *_ in latest]
    for image_id, row, box, step in latest:
        slot = memory.image_id.tolist().index(image_id)
        assert torch.equal(memory.vectors[slot], row) and torch.equal(memory.box[slot], box)
        assert memory.step[slot] == step
    noise = memory.image_id == -1
    assert noise.sum() == max(0, slots - pushed) and (memory.step[noise] == -1).all()
    torch.testing.assert_close(memory.vectors.norm(dim=1), torch.ones(slots))


def test_ages_after_three_updates():
    """Eight slots, batches of four, three updates: slots 0-3 are new again, 4-7 one update old."""
    memory = Memory(8, 2)
    for step in range(3):
        memory.push(F.normalize(torch.randn(4, 2), dim=1), step=step)
    assert memory.step.tolist() == [2] * 4 + [1] * 4 and memory.cursor == 4
    assert memory.image_id.tolist() == [-2] * 8


def test_memory_has_no_parameters_and_saves_all_of_itself():
    memory = Memory(6, 2)
    memory.push(F.normalize(torch.randn(4, 2), dim=1), torch.arange(4), step=7)
    other = Memory(6, 2)
    other.load_state_dict(memory.state_dict())
    assert not list(memory.parameters())
    assert all(torch.equal(a, b) for a, b in zip(memory.buffers(), other.buffers(), strict=True))


def test_order_is_a_permutation_keyed_by_seed_and_step():
    orders = {(seed, step): block_order(seed, step, 50).tolist() for seed in (0, 1) for step in range(4)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    assert block_order(1, 3, 50).tolist() == orders[1, 3]
