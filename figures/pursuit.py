"""Lines coded as well as a classical method can: orthogonal matching pursuit in the place of a gate.

K-lines is fitted with one line a row. Where a row holds several features, the largest inner products are often with
lines that are nearly parallel, and adding those up overshoots: the code would be at fault, not the lines. Pursuit takes
one line after another, each the best for what is left, and then fits all coefficients together (Pati et al. 1993).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models import SparseModel
from sasa_theory.models.codes import Codes

#: rows coded at once
CHUNK = 512


class Pursuit(SparseModel):
    """Unit lines (the decoder's rows) with `active_latents` on, each chosen by what the others leave unexplained."""

    def __init__(self, width_in: int, n_latents: int, active_latents: int) -> None:
        super().__init__(width_in, n_latents)
        self.active_latents = active_latents

    @torch.no_grad()
    def encode(self, x: "Float[Tensor, 'B D']") -> Codes:
        """k = argmax |<residual, d_k>| again and again; then min ||x - b - sum_k c_k d_k|| over those chosen."""
        parts = [self._chosen(rows) for rows in (x - self.b_dec).split(CHUNK)]
        index, values = (torch.cat(part) for part in zip(*parts, strict=True))
        return Codes(index, values[..., None], self.n_units)

    def _chosen(self, rows: "Float[Tensor, 'B D']") -> tuple[Tensor, Tensor]:
        left, basis = rows, rows.new_empty(len(rows), 0, rows.shape[1])
        index = torch.empty(len(rows), 0, dtype=torch.int64, device=rows.device)
        for _ in range(self.active_latents):
            inner = (left @ self.W_dec.T).abs().scatter_(1, index, -1.0)
            index = torch.cat([index, inner.argmax(1, keepdim=True)], 1)
            new = self.W_dec[index[:, -1]]
            # what is new in this line, against those taken before
            new = new - torch.einsum("bk,bkd->bd", torch.einsum("bd,bkd->bk", new, basis), basis)
            new = new / torch.linalg.vector_norm(new, dim=1, keepdim=True).clamp_min(1e-6)
            left = left - (left * new).sum(1, keepdim=True) * new
            basis = torch.cat([basis, new[:, None]], 1)
        lines = self.W_dec[index].double().mT
        values = torch.linalg.lstsq(lines, rows[..., None].double()).solution[..., 0]
        return index, values.to(rows.dtype)
