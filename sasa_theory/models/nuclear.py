"""Nuclear norms of many small-rank maps at once, from r x r Gram matrices.

For A (D, r), B (r, D) let P = (A^T A)^{1/2}, Q = (B B^T)^{1/2}. The singular values of A B are the square roots of the
eigenvalues of Q (A^T A) Q, and with A B = U S V^T the minimal subgradient U V^T of the nuclear norm gives

    d/dA = U V^T B^T = A [Q (Q A^T A Q)^{-1/2} Q],      d/dB = A^T U V^T = [P (P B B^T P)^{-1/2} P] B,

inverses read as pseudo-inverses: a zero block has gradient zero, equal eigenvalues do no harm. Nothing of size D x D
appears, and the r x r part runs in float64.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def map_nuclear_norm(enc: "Float[Tensor, 'K D r']", dec: "Float[Tensor, 'K r D']") -> "Float[Tensor, ' K']":
    """||enc[k] @ dec[k]||_* for every k, differentiable with the exact minimal subgradient (C1, C5)."""
    return _MapNuclearNorm.apply(enc, dec)


def block_nuclear_norm(dec: "Float[Tensor, 'K r D']") -> "Float[Tensor, ' K']":
    """||dec[k]||_* for every k, differentiable with the exact minimal subgradient (C8)."""
    return _BlockNuclearNorm.apply(dec)


def _gram(block: Tensor) -> Tensor:
    """block block^T (K, r, r) of (K, r, D) blocks, multiplied in the weights' own precision, then float64.

    Never in autocast's: squaring halves the digits, and bf16 would lose the small singular values the penalty is for.
    """
    with torch.autocast(block.device.type, enabled=False):
        return (block @ block.transpose(1, 2)).double()


def _powers(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its pseudo-inverse, batched, of positive semidefinite matrices."""
    values, vectors = torch.linalg.eigh((matrix + matrix.transpose(-1, -2)) / 2)
    # eigenvalues below rounding of the largest are zeros
    floor = values[..., -1:].clamp_min(0) * matrix.shape[-1] * torch.finfo(matrix.dtype).eps * 4
    kept = values > floor
    root = torch.where(kept, values, 0).sqrt()
    inverse = torch.where(kept, root, 1).reciprocal() * kept
    return (vectors * root[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT


class _MapNuclearNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, enc: Tensor, dec: Tensor) -> Tensor:
        gram_a, gram_b = _gram(enc.transpose(1, 2)), _gram(dec)
        p, _ = _powers(gram_a)
        q, _ = _powers(gram_b)
        root, inverse_q = _powers(q @ gram_a @ q)
        _, inverse_p = _powers(p @ gram_b @ p)
        ctx.save_for_backward(enc, dec, q @ inverse_q @ q, p @ inverse_p @ p)
        return root.diagonal(dim1=-2, dim2=-1).sum(-1).to(dec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        enc, dec, right, left = ctx.saved_tensors
        scale = grads[0][:, None, None]
        # r x D products throughout: encoder blocks lie in memory as their transposes, and so should their gradient
        right, left = scale * right.mT.to(enc.dtype), scale * left.to(dec.dtype)
        return (right @ enc.mT).mT, left @ dec


class _BlockNuclearNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dec: Tensor) -> Tensor:
        root, inverse = _powers(_gram(dec))
        ctx.save_for_backward(dec, inverse)
        return root.diagonal(dim1=-2, dim2=-1).sum(-1).to(dec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        dec, inverse = ctx.saved_tensors
        return (grads[0][:, None, None] * inverse.to(dec.dtype)) @ dec
