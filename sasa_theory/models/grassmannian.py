"""Grassmannian block-sparse featurizer (Fel et al. 2026, arXiv:2606.25234): each block is an orthonormal frame.

    D_k^T D_k = I,   p_k = gamma_k D_k^T (h - b),  keep the s blocks of largest ||p_k||,  hhat = b + sum_k D_k p_k

So block k answers with gamma_k P_k (h - b), P_k the orthogonal projector onto its span: at gamma = 1 its code is the
projection, and ||p_k|| the energy it explains. gamma_k makes up for what overlapping frames count twice.

After each step the frames are orthonormalised (Gram-Schmidt, each frame from its first row on) and the encoder set to
gamma D^T; W_enc and b_enc are not trained themselves. The released code takes the QR inside every forward instead:
the same models, on another path. Auxiliary loss as in `bsf.py`, with gradients through the decoder alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sasa_theory.models.base import Loss
from sasa_theory.models.bsf import BSF
from sasa_theory.models.registry import architectures
from synthetic.errors import UsageError


@architectures.register("grassmannian")
class Grassmannian(BSF):
    """Grassmannian featurizer; raises UsageError for more active blocks than there are and for group_rank > width_in.

    Saved as "topk_sasa", with the encoder gamma D^T.
    """

    architecture = "grassmannian"

    def __init__(self, width_in: int, n_groups: int, group_rank: int, active_groups: int, aux_groups: int = 32) -> None:
        super().__init__(width_in, n_groups, group_rank, active_groups, aux_groups)
        if group_rank > width_in:
            raise UsageError(f"group_rank is {group_rank}: no orthonormal frame of it fits width {width_in}; lower it")
        self.gamma = nn.Parameter(torch.ones(n_groups))
        self.W_enc.requires_grad_(False)
        self.b_enc.requires_grad_(False)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, rows: "Float[Tensor, 'n D'] | None" = None) -> None:
        """As every model (frames are orthonormal then), with gamma = 1."""
        super().initialise(generator, rows)
        if "gamma" in self._parameters:  # the first call comes from the base class, before gamma exists
            self.gamma.fill_(1.0)

    def training_rows(self) -> "tuple[Float[Tensor, 'D Kr'], Float[Tensor, 'Kr D']]":
        """gamma D^T and D, with D = (3 W - (W W^T) W) / 2 per block: W itself where its rows are orthonormal.

        The derivative of that step at such W is the projection onto the tangent space, dW - (dW W^T + W dW^T) W / 2:
        only what turns a frame reaches the optimiser, not what would stretch it.
        """
        blocks = self.W_dec.unflatten(0, (-1, self.rank))
        frames = (1.5 * blocks - 0.5 * (blocks @ blocks.mT) @ blocks).flatten(0, 1)
        return (self.gamma.repeat_interleave(self.rank)[:, None] * frames).T, frames

    @torch.no_grad()
    def post_step(self, loss: Loss | None = None) -> None:
        """Orthonormal frames, and the encoder tied to them."""
        frames = torch.linalg.qr(self.W_dec.unflatten(0, (-1, self.rank)).mT)
        signs = torch.where(frames.R.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)
        self.W_dec.copy_((frames.Q * signs[:, None]).mT.flatten(0, 1))
        self.W_enc.copy_(self.training_rows()[0])
