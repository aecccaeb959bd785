"""Sources: plain iterators pass through unchanged, say that they cannot resume, and bad rows are named."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthetic import World
from synthetic.errors import DataError, UsageError
from synthetic.source import PlainSource, Source, as_source, require_rows


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 6), st.booleans())
def test_a_plain_iterator_loses_nothing(sizes: list[int], width: int, told: bool) -> None:
    batches = [torch.randn(size, width, generator=torch.Generator().manual_seed(size)) for size in sizes]
    source = PlainSource(iter(batches), width if told else None)
    assert source.width == width and isinstance(source, Source) and source.resumable is False
    assert all(torch.equal(a, b) for a, b in zip(source, batches, strict=True))
    with pytest.raises(StopIteration):
        next(source)
    with pytest.raises(UsageError, match="cannot be resumed"):
        source.load_state_dict(source.state_dict())


def test_as_source_wraps_only_what_is_not_one() -> None:
    stream = World.from_spec("smoke").batches(3)
    assert as_source(stream) is stream
    assert isinstance(as_source([torch.zeros(2, 3)]), PlainSource)
    with pytest.raises(UsageError, match="iterator of batches is empty"):
        as_source([])


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 8), st.integers(1, 5), st.data())
def test_the_first_bad_row_is_named(rows: int, width: int, data: st.DataObject) -> None:
    x = torch.zeros(rows, width)
    require_rows(x, width)
    bad = data.draw(st.sets(st.integers(0, rows - 1), min_size=1))
    for row in bad:
        x[row, data.draw(st.integers(0, width - 1))] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    with pytest.raises(DataError, match=rf"shard 3 holds NaN or Inf \(first at row {min(bad)}\)"):
        require_rows(x, width, "shard 3")


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 3\); expected \(batch, 4\)"):
        require_rows(torch.zeros(2, 3), 4)
    with pytest.raises(UsageError, match=r"shape \(4,\)"):
        require_rows(torch.zeros(4), 4)
    with pytest.raises(UsageError, match=r"dtype torch\.int64"):
        require_rows(torch.zeros(2, 4, dtype=torch.int64), 4)
