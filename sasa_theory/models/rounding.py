"""Encoder products in int8, and how far off they may be: what both screened gates (torch's and the compiled) rest on.

A row is scaled to entries of at most 127 and rounded, so an entry errs by at most half of scale = max|entry| / 127,
with variance scale^2 / 12. The product of a row x and a column w therefore errs with variance

    scale_x^2 / 12 ||w||^2  +  scale_w^2 / 12 ||x||^2

and is trusted to SIGMAS such deviations. That is a statement about rounding errors as they come, not a proof for every
input; but it only decides which coefficients are computed exactly. Both sides are first scaled dimension by dimension
to like sizes, so that the few large dimensions of language-model activations do not use up the eight bits.
"""

import functools

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

#: a screened coefficient is taken to be within this many standard deviations of the exact one
SIGMAS = 6.0
#: rows whose dimensions are measured to balance the two sides
SAMPLE = 256


@functools.cache
def int8_is_faster() -> bool:
    """Whether this processor multiplies int8 faster than float32, and torch does it right (a small case is tried)."""
    if not (hasattr(torch, "_int_mm") and getattr(torch.cpu, "_is_vnni_supported", lambda: False)()):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-127, 128, (n, 64), generator=generator, dtype=torch.int8) for n in (33, 70))
    return torch.equal(torch._int_mm(a, b.T), a.int() @ b.int().T)


def padded(width: int) -> int:
    """Entries of a row in int8: a multiple of four, which the processor takes at once.

    (And at a width of one, torch 2.13 misreads a transposed factor.)
    """
    return -(-width // 4) * 4


def balance_of(x: "Float[ndarray, 'B D']", rows: "Float[ndarray, 'n D']") -> "Float[ndarray, ' D']":
    """What to multiply x's dimensions with, and divide the weights' by, so that both have like sizes in each."""
    size_x = np.square(x[:: max(1, len(x) // SAMPLE)]).mean(0)
    size_w = np.square(rows[:: max(1, len(rows) // SAMPLE)]).mean(0)
    usable = (size_x > 0) & (size_w > 0) & np.isfinite(size_x) & np.isfinite(size_w)
    return np.where(usable, (size_w / np.where(usable, size_x, 1)) ** 0.25, 1).astype(np.float32)
