"""A stream draws on one torch thread and leaves torch's threads, and the numbers, as they were."""

from collections.abc import Iterator

import pytest
import torch

from synthetic.stream import one_thread
from synthetic.world import World


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["smoke", "manifold-superposition"])
def test_batches_are_those_of_any_number_of_threads(two_threads, monkeypatch, name):
    world = World.from_spec(name)
    inside = []
    sample = world.sample
    monkeypatch.setattr(world, "sample", lambda *given: inside.append(torch.get_num_threads()) or sample(*given))
    stream, twin = world.batches(3000), world.batches(3000)
    drawn = stream.batch()
    assert inside == [1] and torch.get_num_threads() == 2
    again = sample(3000, twin._generator)
    assert torch.equal(drawn.x, again.x) and torch.equal(drawn.index, again.index)


def test_the_number_of_threads_comes_back_after_an_error(two_threads):
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == 2
