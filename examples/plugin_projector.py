"""An architecture of one's own: SASA whose groups are orthogonal projectors. Load it with --plugin.

It is one definition; training, checkpoints and evaluation are shared. Its checkpoint is a SASA checkpoint, as the two
compute the same function. An architecture from scratch defines `encode`, `loss` and `export`: see
sasa_theory/models/topk.py.
"""

import torch

from sasa_theory.models import SASA, Loss, architectures


@architectures.register("projector")
class Projector(SASA):
    """hhat = sum over the s groups with the largest ||P_k (h - b)|| of P_k (h - b), plus b; P_k = D_k D_k^T."""

    architecture = "projector"

    @torch.no_grad()
    def post_step(self, loss: Loss) -> None:
        """Orthonormal decoder blocks, then the encoder tied to them."""
        super().post_step(loss)
        blocks = self.W_dec.unflatten(0, (self.n_units, self.rank)).transpose(1, 2)
        q, r = torch.linalg.qr(blocks)
        # the sign that QR leaves open: without it, columns would flip from step to step
        q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
        self.W_dec.copy_(q.transpose(1, 2).flatten(0, 1))
        self.W_enc.copy_(self.W_dec.T)
