"""The objectives of the paper as pure functions: what they cost at a point, and the dual functions that bound them.

Two objectives, in the units of the activations given:
    psi_D(h) = min_a 1/2 ||h - D a||^2 + lam ||a||_1                      the l1-SAE, charged per token
    sum_t w_t ||h_t - sum_{k in S_t} M_k h_t||^2 + lam sum_k ||M_k||_*    SASA, charged once per group
Nothing is minimised here (the solvers do); samples and atoms are rows, arrays float64.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from sasa_theory.arguments import require_real
from synthetic.errors import UsageError


def lasso_cost(
    atoms: "Float[ndarray, 'N D']", x: "Float[ndarray, 'n D']", codes: "Float[ndarray, 'n N']", lam: float
) -> "Float[ndarray, ' n']":
    """Cost of given codes under the l1 objective, one value per sample (B).

    1/2 ||x - D a||^2 + lam ||a||_1. Raises UsageError for shapes that do not fit or lam < 0.
    """
    atoms, x, codes = (np.asarray(v, dtype=np.float64) for v in (atoms, x, codes))
    require_real("lam", lam, 0)
    if atoms.ndim != 2 or x.ndim != 2 or codes.shape != (len(x), len(atoms)) or x.shape[1] != atoms.shape[1]:
        raise UsageError(
            f"shapes atoms {atoms.shape}, x {x.shape}, codes {codes.shape}; expected (N, D), (n, D), (n, N)"
        )
    return np.square(x - codes @ atoms).sum(1) / 2 + lam * np.abs(codes).sum(1)


def lasso_dual(x: "Float[ndarray, 'n D']", u: "Float[ndarray, 'n D']") -> "Float[ndarray, ' n']":
    """Dual value 1/2 ||x||^2 - 1/2 ||x - u||^2, a lower bound on psi for every dual-feasible u (B1).

    Feasible: |<d_j, u>| <= lam for all atoms (signed codes), <d_j, u> <= lam (non-negative codes). psi is the largest
    value, reached at the projection of x onto lam P*. Raises UsageError for shapes that differ.
    """
    x, u = np.asarray(x, dtype=np.float64), np.asarray(u, dtype=np.float64)
    if x.ndim != 2 or x.shape != u.shape:
        raise UsageError(f"x has shape {x.shape} and u {u.shape}; expected the same (n, D)")
    return (np.square(x).sum(1) - np.square(x - u).sum(1)) / 2


def huber(h: "Float[ndarray, '...']", lam: float, signed: bool = True) -> "Float[ndarray, '...']":
    """psi of one coordinate when its own basis vector codes it: h^2 / 2 up to lam, lam |h| - lam^2 / 2 beyond (B5).

    With non-negative codes negative coordinates cost h^2 / 2. The sum over coordinates is psi of the true basis.
    Raises UsageError for lam < 0.
    """
    require_real("lam", lam, 0)
    h = np.asarray(h, dtype=np.float64)
    size = np.abs(h) if signed else h
    return np.where(size > lam, lam * size - lam**2 / 2, h**2 / 2)


def slice_cost(map_: "Float[ndarray, 'D D']", sigma: "Float[ndarray, 'D D']", lam: float) -> float:
    """Cost of one group on a slice: tr((I - M) Sigma (I - M)^T) + lam ||M||_* (C1).

    Raises UsageError for shapes that do not fit or lam < 0.
    """
    map_, sigma = np.asarray(map_, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
    require_real("lam", lam, 0)
    if map_.ndim != 2 or map_.shape[0] != map_.shape[1] or map_.shape != sigma.shape:
        raise UsageError(f"the map has shape {map_.shape} and Sigma {sigma.shape}; expected the same (D, D)")
    left = np.eye(len(sigma)) - map_
    return float(np.trace(left @ sigma @ left.T)) + lam * float(np.linalg.norm(map_, "nuc"))


def routed_cost(
    maps: "Float[ndarray, 'K D D']",
    x: "Float[ndarray, 'n D']",
    index: "Int[ndarray, 'n s']",
    lam: float,
    weights: "Float[ndarray, ' n'] | None" = None,
) -> float:
    """The SASA objective of given maps at a given routing (C).

    sum_t w_t ||x_t - sum_{k in S_t} M_k x_t||^2 + lam sum_k ||M_k||_*, S_t the groups in row t of `index` (-1: none),
    weights 1 / n unless given. Raises UsageError for shapes or groups that do not fit, lam or weights < 0.
    """
    maps, x, index = np.asarray(maps, dtype=np.float64), np.asarray(x, dtype=np.float64), np.asarray(index)
    require_real("lam", lam, 0)
    if maps.ndim != 3 or x.ndim != 2 or maps.shape[1:] != (x.shape[1],) * 2 or index.shape[:1] != (len(x),):
        raise UsageError(
            f"shapes maps {maps.shape}, x {x.shape}, index {index.shape}; expected (K, D, D), (n, D), (n, s)"
        )
    if index.size and not (index.min() >= -1 and index.max() < len(maps)):
        raise UsageError(f"index holds groups {index.min()} to {index.max()}; expected -1 (none) to {len(maps) - 1}")
    shares = np.full(len(x), 1 / max(len(x), 1)) if weights is None else np.asarray(weights, dtype=np.float64)
    if shares.shape != (len(x),) or not (shares >= 0).all():
        raise UsageError(f"weights have shape {shares.shape}; expected ({len(x)},), none negative")
    left = x.copy()
    for group in range(len(maps)):
        times = (index == group).sum(1)
        on = times > 0
        left[on] -= times[on, None] * (x[on] @ maps[group].T)
    return float(shares @ np.square(left).sum(1)) + lam * sum(float(np.linalg.norm(m, "nuc")) for m in maps)


def sasa_penalty(
    encoders: "Float[ndarray, 'K r D']", decoders: "Float[ndarray, 'K D r']", lam: float, penalty: str = "map"
) -> float:
    """The nuclear-norm term of SASA's training loss, in either form (C, C8).

    penalty="map": lam sum_k ||D_k E_k||_*, the paper's; "decoder": lam mean_k ||D_k||_*, the published code's. Raises
    UsageError for another name or shapes that do not fit.
    """
    encoders, decoders = np.asarray(encoders, dtype=np.float64), np.asarray(decoders, dtype=np.float64)
    require_real("lam", lam, 0)
    if encoders.ndim != 3 or decoders.shape != tuple(encoders.shape[i] for i in (0, 2, 1)):
        raise UsageError(f"shapes {encoders.shape} and {decoders.shape}; expected (K, r, D) and (K, D, r)")
    if penalty not in ("map", "decoder"):
        raise UsageError(f"penalty is {penalty!r}; expected 'map' or 'decoder'")
    if penalty == "map":
        return lam * sum(float(np.linalg.norm(d @ e, "nuc")) for d, e in zip(decoders, encoders, strict=True))
    return lam * float(np.mean([np.linalg.norm(d, "nuc") for d in decoders]))
