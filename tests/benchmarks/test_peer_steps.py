"""The peers' steps, where the extra peers is installed: they train, and their auxiliary loss sees the forced dead."""

import pytest
import torch

from benchmarks.contenders import CONTENDERS, Bench, Setting, rows

DENSE = ("relu", "gated", "jumprelu")
AT = Setting(16, 20, 2, 3, 64, dead=0.25)
PEERS = {
    "sae-lens topk": "sae_lens",
    "sae-lens batchtopk": "sae_lens",
    "sae-lens abstopk": "sae_lens",
    "sae-lens matryoshka": "sae_lens",
    "dictionary_learning topk": "dictionary_learning",
    "dictionary_learning batchtopk": "dictionary_learning",
    "dictionary_learning matryoshka": "dictionary_learning",
    "sparsify topk": "sparsify",
}
PENALISED = [f"{library} {name}" for library in ("sae-lens", "dictionary_learning") for name in DENSE]


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
    if name.startswith("sae-lens") and "abstopk" not in name:
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


@pytest.mark.saelens
@pytest.mark.parametrize("name", PENALISED)
def test_a_penalised_peer_begins_at_the_settings_l0_and_trains(name):
    pytest.importorskip(name.partition(" ")[0].replace("-", "_"))
    at = Setting(16, 40, 2, 3, 512)
    one = CONTENDERS[name](Bench(at, rows(at, "cpu")))
    (trainer,) = [cell.cell_contents for cell in one.__closure__ if hasattr(cell.cell_contents, "optimizer")]
    model = trainer.sae if name.startswith("sae-lens") else trainer.ae
    with torch.no_grad():
        assert float((model.encode(rows(at, "cpu")[0]) != 0).sum(1).float().mean()) == pytest.approx(at.l0, rel=0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    one()
    one()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
