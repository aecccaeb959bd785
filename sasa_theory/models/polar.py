"""Square root and inverse square root of products of two Gram matrices, batched, by Newton-Schulz.

For A (D, r), B (r, D) with G_A = A^T A, G_B = B B^T the product N = G_B G_A has the squared singular values of A B as
eigenvalues, and with A B = U S V^T

    ||A B||_* = tr N^{1/2},     U V^T = A N^{-1/2} B,

so that everything the nuclear norm needs comes from one coupled iteration of r x r products,

    Y, Z = N / c, I;     T = (3 I - Z Y) / 2,  Y <- Y T,  Z <- T Z;     Y -> (N/c)^{1/2},  Z -> (N/c)^{-1/2},

which multiplies the small eigenvalues of Y^2 by 9/4 a step and then converges quadratically (Higham 2008, ch. 6). An
eigenvalue too small to arrive leaves Z at (3/2)^steps there: its singular direction enters the gradient with a weight
below one, which is a subgradient too. A fixed number of steps therefore needs no test and no second method, and the
host never waits; `error` tells who did arrive.
"""

import torch
from jaxtyping import Float
from torch import Tensor

#: singular values of A B down to about 1e-4 of the largest arrive, which is what float32 weights can tell apart;
#: zeros that rounding has made +-1e-16 stay 4e-6 away from where they would count, or leave
STEPS = 30


def product_roots(
    left: "Float[Tensor, 'K r r']", right: "Float[Tensor, 'K r r']", steps: int = STEPS
) -> "tuple[Float[Tensor, 'K r r'], Float[Tensor, 'K r r'], Float[Tensor, ' K']]":
    """N^{1/2}, N^{-1/2} and the largest entry of |I - Z Y| of each N = left @ right, both positive semidefinite.

    Float64. A zero product has two zero roots and error 1.
    """
    product = left @ right
    # the root of the sum of squared eigenvalues: no less than the largest
    scale = (product * product.mT).sum((1, 2), keepdim=True).clamp_min(0).sqrt()
    some = scale > 0
    scale = torch.where(some, scale, 1)
    unit = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    y, z = product / scale, unit.expand_as(product).contiguous()
    half = 1.5 * unit.expand_as(product)
    for _ in range(steps):
        t = torch.baddbmm(half, z, y, alpha=-0.5)
        y, z = y @ t, t @ z
    error = (unit - z @ y).abs().amax((1, 2))
    root = scale.sqrt()
    return y * root, torch.where(some, z / root, 0), error
