"""A batch is drawn on one torch thread and leaves torch's threads, and the numbers, as they were."""

from collections.abc import Iterator

import pytest
import torch

from synthetic.batch import FrameTable
from synthetic.stream import one_thread
from synthetic.world import World


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", ["smoke", "manifold-superposition"])
def test_batches_are_those_of_any_number_of_threads(two_threads, monkeypatch, name, large):
    """One thread draws; every thread adds up the frames of a large batch, here of any."""
    if large:
        monkeypatch.setattr("synthetic.world.MANY", 0)
    world, drawing, adding = World.from_spec(name), [], []
    draw, add_up = world._draw, FrameTable.add_up
    monkeypatch.setattr(world, "_draw", lambda *a, **b: drawing.append(torch.get_num_threads()) or draw(*a, **b))
    monkeypatch.setattr(FrameTable, "add_up", lambda *a: adding.append(torch.get_num_threads()) or add_up(*a))
    stream, twin = world.batches(3000), world.batches(3000)
    drawn, rows = stream.batch(), next(stream)
    assert drawing == [1, 1] and adding == ([2, 2] if large else [1, 1])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    monkeypatch.undo()
    again = twin.batch()
    assert torch.equal(drawn.x, again.x) and torch.equal(drawn.index, again.index) and torch.equal(rows, next(twin))


def test_the_number_of_threads_comes_back_after_an_error(two_threads):
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2
