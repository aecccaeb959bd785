"""The file of a training state: what is saved comes back, and a torn file is named."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sasa_theory.training.state import load_state, save_state
from synthetic.errors import DataError


@settings(deadline=None, max_examples=20)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=3), st.floats(-1, 1)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.lists(st.integers(1, 4), max_size=3),
)
def test_state_round_trip(value, shape):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        tensor = torch.randn(shape)
        save_state(path, {"value": value, "deep": {"tensor": tensor, "list": [tensor, 1]}})
        back = load_state(path)
        assert back["value"] == value
        assert torch.equal(back["deep"]["tensor"], tensor) and torch.equal(back["deep"]["list"][0], tensor)
        path.write_bytes(path.read_bytes()[:-1] if tensor.numel() else b"x")
        with pytest.raises(DataError, match="not a whole training state"):
            load_state(path)
