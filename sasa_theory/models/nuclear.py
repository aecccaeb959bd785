"""Nuclear norms of many small-rank maps at once, from r x r Gram matrices.

For A (D, r), B (r, D) let G_A = A^T A, Q = (B B^T)^{1/2} and S = Q G_A Q. The singular values of A B are the square
roots of the eigenvalues of S, and with A B = U S V^T the minimal subgradient U V^T = A Q S^{-1/2} Q^{-1} B gives

    d/dA = U V^T B^T = A [Q S^{-1/2} Q],      d/dB = A^T U V^T = [G_A Q S^{-1/2} Q^{-1}] B,

inverses read as pseudo-inverses: a zero block has gradient zero, equal eigenvalues do no harm. Nothing of size D x D
appears, and the r x r part runs in float64. On a GPU, where an eigensolver makes the host wait, the roots come from
`polar` or, for small ranks, from the kernel of `polar_triton`.
"""

import functools
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sasa_theory.models.polar import product_roots


def map_nuclear_norm(enc: "Float[Tensor, 'K D r']", dec: "Float[Tensor, 'K r D']") -> "Float[Tensor, ' K']":
    """||enc[k] @ dec[k]||_* for every k, differentiable with the exact minimal subgradient (C1, C5)."""
    return _MapNuclearNorm.apply(enc, dec)


def block_nuclear_norm(dec: "Float[Tensor, 'K r D']") -> "Float[Tensor, ' K']":
    """||dec[k]||_* for every k, differentiable with the exact minimal subgradient (C8)."""
    return _BlockNuclearNorm.apply(dec)


def _kernel(dec: Tensor) -> ModuleType | None:
    """The module of the Triton kernel where it applies: float32 on a GPU, small ranks."""
    kernel = _triton() if dec.is_cuda and dec.dtype == torch.float32 else None
    return kernel if kernel is not None and dec.shape[1] <= kernel.LARGEST else None


@functools.cache
def _triton() -> ModuleType | None:
    try:
        from sasa_theory.models import polar_triton
    except ImportError:  # a torch without Triton
        return None
    return polar_triton


def _gram(block: Tensor) -> Tensor:
    """block block^T (K, r, r) of (K, r, D) blocks in float64, on a CPU multiplied in the weights' own precision.

    Never in autocast's: squaring halves the digits, and bf16 would lose the small singular values the penalty is for.
    Nor in TF32, and Newton-Schulz bears no eigenvalue that rounding has made negative: a GPU multiplies in float64.
    """
    with torch.autocast(block.device.type, enabled=False):
        if block.is_cuda:
            block = block.double()
        return (block @ block.mT).double()


def _powers(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its pseudo-inverse, batched, of positive semidefinite matrices."""
    values, vectors = torch.linalg.eigh((matrix + matrix.transpose(-1, -2)) / 2)
    # eigenvalues below rounding of the largest are zeros
    floor = values[..., -1:].clamp_min(0) * matrix.shape[-1] * torch.finfo(matrix.dtype).eps * 4
    kept = values > floor
    root = torch.where(kept, values, 0).sqrt()
    inverse = torch.where(kept, root, 1).reciprocal() * kept
    return (vectors * root[..., None, :]) @ vectors.mT, (vectors * inverse[..., None, :]) @ vectors.mT


def _by_eigenvectors(gram_a: Tensor, gram_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The norms, and the r x r factors that make the gradients by A and by B."""
    q, inverse_q = _powers(gram_b)
    root, inverse = _powers(q @ gram_a @ q)
    middle = q @ inverse
    return _trace(root), middle @ q, gram_a @ middle @ inverse_q


def _by_newton_schulz(gram_a: Tensor, gram_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same without an eigensolver."""
    root, inverse, _ = product_roots(gram_b, gram_a)
    return _trace(root), inverse @ gram_b, gram_a @ inverse


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def _times(factor: Tensor, block: Tensor, scale: Tensor) -> Tensor:
    """scale[k] factor[k] @ block[k]; r x D products, so that a gradient lies in memory as its weights do."""
    if (kernel := _kernel(block)) is not None:
        product: Tensor = kernel.times(factor, block, scale)
        return product
    # a GPU has the products for float64, and nearly singular blocks use them: their factors cancel
    kind = torch.float64 if block.is_cuda else block.dtype
    return (scale[:, None, None] * factor.to(kind) @ block.to(kind)).to(block.dtype)


class _MapNuclearNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, enc: Tensor, dec: Tensor) -> Tensor:
        if (kernel := _kernel(dec)) is not None:
            norms, right, left = kernel.roots(enc.mT, dec)
        else:
            roots = _by_newton_schulz if dec.is_cuda else _by_eigenvectors
            norms, right, left = roots(_gram(enc.mT), _gram(dec))
            right = right.mT
        ctx.save_for_backward(enc, dec, right, left)
        return norms.to(dec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        enc, dec, right, left = ctx.saved_tensors
        return _times(right, enc.mT, grads[0]).mT, _times(left, dec, grads[0])


class _BlockNuclearNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dec: Tensor) -> Tensor:
        if (kernel := _kernel(dec)) is not None:
            norms, _, inverse = kernel.roots(None, dec)
        elif dec.is_cuda:
            unit = torch.eye(dec.shape[1], dtype=torch.float64, device=dec.device)
            norms, _, inverse = _by_newton_schulz(unit.expand(len(dec), -1, -1), _gram(dec))
        else:
            root, inverse = _powers(_gram(dec))
            norms = _trace(root)
        ctx.save_for_backward(dec, inverse)
        return norms.to(dec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        dec, inverse = ctx.saved_tensors
        return _times(inverse, dec, grads[0])
