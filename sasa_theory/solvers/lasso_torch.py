"""LASSO coding on any device: accelerated proximal gradient over all samples at once, certified like `lasso`.

Every iteration is two dense products, which is what a GPU does best; on a CPU `lasso` is many times faster. Momentum
restarts for each sample whose step turns back (O'Donoghue and Candes 2015). The dual point is the residual of the
iterate, scaled until no price exceeds lam (B1); samples leave when their gap is as asked.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.errors import UsageError

#: iterations between two looks at the gaps
EVERY = 25


@dataclass(frozen=True)
class Solution:
    """Codes (n, N), primal (n,) and dual (n,) values, squares (n,) = 1/2 ||x||^2."""

    codes: "Float[Tensor, 'n N']"
    primal: "Float[Tensor, ' n']"
    dual: "Float[Tensor, ' n']"
    squares: "Float[Tensor, ' n']"

    @property
    def gap(self) -> "Float[Tensor, ' n']":
        """(primal - dual) / (1/2 ||x||^2) per sample; 0 for a zero sample."""
        safe = torch.where(self.squares > 0, self.squares, 1.0)
        return torch.where(self.squares > 0, (self.primal - self.dual) / safe, 0.0)


@torch.no_grad()
def solve(
    atoms: "Float[Tensor, 'N D']",
    x: "Float[Tensor, 'n D']",
    lam: "float | Float[Tensor, ' n']",
    signed: bool = True,
    rtol: float = 1e-6,
    iterations: int = 20_000,
) -> Solution:
    """Codes of every row of `x` with primal and dual values; after `iterations` with the gap that was reached.

    Computes in the tensors' own precision: in float32 gaps below about 1e-5 are out of reach. Raises UsageError for
    shapes, types or devices that do not fit, NaN or Inf, or lam not above 0 (use `lasso` for lam = 0).
    """
    if atoms.ndim != 2 or x.ndim != 2 or atoms.shape[1] != x.shape[1] or len(atoms) == 0:
        raise UsageError(f"atoms have shape {tuple(atoms.shape)} and x {tuple(x.shape)}; expected (N, D) and (n, D)")
    if atoms.dtype != x.dtype or atoms.device != x.device or not atoms.is_floating_point():
        raise UsageError(f"atoms are {atoms.dtype} on {atoms.device}, x {x.dtype} on {x.device}; expected the same")
    if not (bool(torch.isfinite(atoms).all()) and bool(torch.isfinite(x).all())):
        raise UsageError("atoms or x hold NaN or Inf; remove or repair them before coding")
    lams = torch.as_tensor(lam, dtype=x.dtype, device=x.device).expand(len(x))
    if not bool((lams > 0).all()):
        raise UsageError(f"lam is {lam!r}; expected a number above 0, or one for each of the {len(x)} samples")
    squares = x.square().sum(1) / 2
    codes = x.new_zeros(len(x), len(atoms))
    primal, dual = squares.clone(), torch.zeros_like(squares)
    curvature = torch.linalg.matrix_norm(atoms, 2).square().clamp_min(1e-300 if x.dtype == torch.float64 else 1e-30)
    still = torch.arange(len(x), device=x.device)
    a, ahead = codes.clone(), codes.clone()
    pace = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    for done in range(iterations + 1):
        if done % EVERY == 0:
            nu = x[still] - a @ atoms
            codes[still] = a
            primal[still], dual[still] = _certify(x[still], nu, nu @ atoms.T, lams[still], a, signed)
            keep = primal[still] - dual[still] > rtol * squares[still]
            still, a, ahead, pace = still[keep], a[keep], ahead[keep], pace[keep]
            if len(still) == 0 or done == iterations:
                break
        moved = ahead + (x[still] - ahead @ atoms) @ atoms.T / curvature
        step = lams[still, None] / curvature
        new = moved.sign() * (moved.abs() - step).clamp_min(0) if signed else (moved - step).clamp_min(0)
        back = ((ahead - new) * (new - a)).sum(1, keepdim=True) > 0
        pace = torch.where(back, 1.0, pace)
        faster = (1 + (1 + 4 * pace.square()).sqrt()) / 2
        ahead = new + torch.where(back, 0.0, (pace - 1) / faster) * (new - a)
        a, pace = new, faster
    return Solution(codes, primal, dual, squares)


def _certify(x: Tensor, nu: Tensor, prices: Tensor, lam: Tensor, a: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    top = (prices.abs() if signed else prices).amax(1).clamp_min(0)
    left, cross = nu.square().sum(1), (nu * x).sum(1)
    t = torch.where(left > 0, cross / torch.where(left > 0, left, 1.0), 0.0).clamp_min(0)
    t = torch.where(top > 0, torch.minimum(t, lam / torch.where(top > 0, top, 1.0)), t)
    return left / 2 + lam * a.abs().sum(1), t * cross - t.square() * left / 2
