"""A store's batches are read on one torch thread, and torch's threads are left as they were."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sasa_theory.activations import ActivationStore, StoreWriter


def test_batches_are_read_on_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    with StoreWriter(tmp_path / "store", 8, meta={}, dtype="float32") as writer:
        writer.append(x, mark=1, contexts=torch.arange(200) // 5)
        writer.finish()
    store = ActivationStore(tmp_path / "store")
    stream, twin = store.batches(30), store.batches(30)
    inside: list[int] = []
    rows = store.rows

    def spied(index: np.ndarray) -> torch.Tensor:
        inside.append(torch.get_num_threads())
        return rows(index)

    monkeypatch.setattr(store, "rows", spied)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        batch = next(stream)
        assert inside == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(batch, x[twin.next_rows()])
