"""Matryoshka BatchTopK (Bussmann et al. 2025): every prefix of the dictionary must reconstruct by itself.

    c as in BatchTopK, chosen once among all latents;   hhat_m = c_{1..m} W_dec_{1..m} + b
    loss = sum over the prefixes m of mean ||h - hhat_m||^2  +  auxiliary loss

The largest prefix is the whole dictionary and gives the reconstruction; with that one alone this is BatchTopK. The
first latents are charged in every term, so they learn what is frequent and broad, and children cannot take over their
parents' rows for free.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory import parallel
from sasa_theory.models.auxiliary import auxiliary_loss
from sasa_theory.models.base import Loss, combine, reconstruction_error
from sasa_theory.models.batchtopk import BatchTopK
from sasa_theory.models.codes import Codes, Ragged
from sasa_theory.models.form import GatedForm
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError


@architectures.register("matryoshka")
class Matryoshka(BatchTopK):
    """Matryoshka autoencoder; raises UsageError for prefixes that are not increasing sizes up to n_latents.

    `prefixes` are the widths of the nested dictionaries, n_latents added where it is missing; None takes a sixteenth,
    an eighth, a quarter, a half and all of them.
    """

    architecture = "matryoshka"
    sizes: Tensor

    def __init__(
        self,
        width_in: int,
        n_latents: int,
        active_latents: int,
        prefixes: Sequence[int] | None = None,
        aux_latents: int = 32,
        threshold_decay: float = 0.99,
    ) -> None:
        super().__init__(width_in, n_latents, active_latents, aux_latents, threshold_decay)
        nested = {max(1, n_latents // part) for part in (16, 8, 4, 2, 1)}
        sizes = sorted(nested) if prefixes is None else list(prefixes)
        if sizes[-1:] != [n_latents]:
            sizes.append(n_latents)
        if not all(isinstance(m, int) for m in sizes) or any(a >= b for a, b in itertools.pairwise([0, *sizes])):
            raise UsageError(f"prefixes are {prefixes!r}; expected increasing sizes from 1 to n_latents = {n_latents}")
        self.prefixes = sizes
        # on the device, which would have to wait for them
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)

    def loss(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss:
        codes, smallest = self.choose(x, parallel.world_size())
        errors, xhat = [], self.b_dec.expand_as(x)
        for share in self.shares(codes):
            xhat = xhat + share
            errors.append(reconstruction_error(x, xhat))
        parts = {
            "reconstruction": errors[-1],
            "nested": torch.stack([*errors[:-1], x.new_zeros(())]).sum(),
            "auxiliary": auxiliary_loss(self, x, xhat, dead, self.aux_latents, signed=False),
        }
        return Loss(torch.stack(list(parts.values())).sum(), parts, codes, xhat, {"smallest": smallest})

    def shares(self, codes: Codes) -> "Sequence[Float[Tensor, 'B D']]":
        """What the latents of each prefix that are in no smaller one add to the reconstruction."""
        if codes.index is None or codes.ragged is None:
            of = itertools.pairwise([0, *self.prefixes])
            return [codes.values[:, start:stop, 0] @ self.W_dec[start:stop] for start, stop in of]
        # a row's pairs of one band are a row of their own; bands one after another
        band = torch.searchsorted(self.sizes, codes.index.flatten(), right=True)
        whose, order = (band * codes.batch + codes.ragged.of).sort(stable=True)
        bands = Codes(
            codes.index[order],
            codes.values[order],
            codes.n_units,
            ragged=Ragged.by(whose, len(self.sizes) * codes.batch),
        )
        return combine(bands, self.W_dec).unflatten(0, (len(self.sizes), codes.batch)).unbind()

    def gated_form(self) -> GatedForm | None:
        """BatchTopK's, with the nested dictionaries."""
        return GatedForm(
            self.active_latents, True, self.aux_latents, "rows", choice="batch", prefixes=tuple(self.prefixes)
        )
