"""SAELens itself as the second party: it reads our directories and we read its, with the same outputs.

Run with a Python that has sae-lens: `python -m pytest -m saelens tests/sasa_theory/test_saelens_interop.py`.
"""

import pytest
import torch

from sasa_theory import saelens
from sasa_theory.models import Grassmannian, NormalisedModel, Normaliser, build

pytestmark = pytest.mark.saelens

ARCHITECTURES = {
    "relu": {},
    "topk": {"active_latents": 3},
    "abstopk": {"active_latents": 3},
    "batchtopk": {"active_latents": 3},
    "matryoshka": {"active_latents": 3},
    "jumprelu": {},
    "gated": {},
    "sasa": {"group_rank": 3, "active_groups": 2},
    "bsf": {"group_rank": 3, "active_groups": 2},
    "grassmannian": {"group_rank": 3, "active_groups": 2},
}


def data(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(300, 8, generator=generator) + torch.randn(8, generator=generator)


def random_model(name: str):
    units = {"n_groups" if "group_rank" in ARCHITECTURES[name] else "n_latents": 12}
    model = build(name, width_in=8, **units, **ARCHITECTURES[name])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        if name in ("batchtopk", "matryoshka"):
            model.threshold.fill_(0.2)
        if isinstance(model, Grassmannian):
            model.post_step()  # its encoder follows the decoder
    return model


@pytest.mark.parametrize("kind, cap", [("none", None), ("layer_norm", 1.2), ("mean_scalar", 1.2)])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
@torch.no_grad()
def test_saelens_reads_ours(tmp_path, name, kind, cap):
    from sae_lens import SAE

    saelens.register()
    saelens.register()
    x = data()
    ours = NormalisedModel(random_model(name), Normaliser.fit(kind, x, cap))
    theirs = SAE.load_from_disk(saelens.save(ours, tmp_path))
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.encode(x), ours.encode(x).dense().flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("name", ["standard", "topk", "topk rescaled", "abstopk", "jumprelu", "gated", "topk_sasa"])
@torch.no_grad()
def test_we_read_theirs(tmp_path, name, normalisation, subtract):
    from sae_lens.registry import get_sae_class

    saelens.register()
    sae_class, config_class = get_sae_class(name.split()[0])
    fields = {"k": 3} if "topk" in name else {}
    if name == "topk rescaled":
        fields["rescale_acts_by_decoder_norm"] = True
    elif name == "topk_sasa":
        fields = {"n_groups": 4, "group_rank": 3, "k_groups": 2}
    theirs = sae_class(
        config_class(d_in=8, d_sae=12, normalize_activations=normalisation, apply_b_dec_to_input=subtract, **fields)
    )
    generator = torch.Generator().manual_seed(2)
    for parameter in theirs.parameters():
        parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    theirs.save_model(tmp_path)
    ours = saelens.load(tmp_path)
    x = data(3)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.encode(x).dense().flatten(1), theirs.encode(x), rtol=1e-4, atol=1e-4)
