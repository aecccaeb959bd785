"""The peers' steps, where the extra peers is installed: they train, and their auxiliary loss sees the forced dead."""

import pytest
import torch

from benchmarks.contenders import CONTENDERS, Bench, Setting, rows

AT = Setting(16, 20, 2, 3, 64, dead=0.25)
PEERS = {
    "sae-lens topk": "sae_lens",
    "sae-lens batchtopk": "sae_lens",
    "dictionary_learning topk": "dictionary_learning",
    "sparsify topk": "sparsify",
}


@pytest.mark.saelens
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_trains_with_the_forced_share_of_dead_columns(name, monkeypatch):
    pytest.importorskip(PEERS[name])
    masks = []
    original = torch.where

    def watched(condition, *others):
        if others and others[-1] in (-torch.inf,) and condition.dtype == torch.bool:
            masks.append(int(condition.sum()))
        return original(condition, *others)

    one = CONTENDERS[name](Bench(AT, rows(AT, "cpu")))
    if name.startswith("sae-lens"):
        import sae_lens.saes.topk_sae as module

        chosen = module.calculate_topk_aux_acts

        def counted(**arguments):
            masks.append(int(arguments["dead_neuron_mask"].sum()))
            return chosen(**arguments)

        monkeypatch.setattr(module, "calculate_topk_aux_acts", counted)
    else:
        monkeypatch.setattr(torch, "where", watched)
    for _ in range(3):
        one()
    assert masks == [10, 10, 10]
