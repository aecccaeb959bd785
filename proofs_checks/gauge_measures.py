"""What C5 and C8 measure: models, changes of basis inside groups, and the minimisers of the released objective.

A group's map M_k = D_k E_k is what the objective sees; its factors are a choice of basis. The released objective
penalises the decoder block instead, with rows of unit length, so there the choice of factors is part of the problem.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy import optimize

from sasa_theory.models import SASA

Change = Literal["rotation", "invertible"]


# Models and their gauge


def draw_model(rng: np.random.Generator, width: int, groups: int, rank: int, active: int, penalty: str = "map") -> SASA:
    """A SASA in float64 with random weights and biases and nuclear coefficient 0.3."""
    model = SASA(width, groups, rank, active, penalty=penalty, nuclear=0.3, penalise="all", encoder_bias=True).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.from_numpy(0.5 * rng.standard_normal(weight.shape)))
    return model


def change_basis(model: SASA, rng: np.random.Generator, change: Change) -> SASA:
    """The same maps in other factors: E_k -> Q E_k, D_k -> D_k Q^{-1}, and the groups in another order.

    Q is a random orthogonal matrix, or any invertible one of condition at most 9.
    """
    other = SASA(**model.settings()).double()
    rank, groups = model.rank, model.n_units
    order = rng.permutation(groups)
    enc, dec = (block.detach().numpy()[order] for block in model.blocks())
    bias = model.b_enc.detach().numpy().reshape(groups, rank)[order]
    q = np.linalg.qr(rng.standard_normal((groups, rank, rank)))[0]
    if change == "invertible":
        q = q * rng.uniform(1 / 3, 3, (groups, 1, rank))
    inverse = np.linalg.inv(q)
    with torch.no_grad():
        other.W_enc.copy_(torch.from_numpy((enc @ q).transpose(1, 0, 2).reshape(model.width_in, -1)))
        other.b_enc.copy_(torch.from_numpy(np.einsum("kr,krs->ks", bias, q).ravel()))
        other.W_dec.copy_(torch.from_numpy((inverse @ dec).reshape(-1, model.width_in)))
        other.b_dec.copy_(model.b_dec)
    return other


@torch.no_grad()
def model_difference(model: SASA, other: SASA, x: "Float[ndarray, 'n D']") -> float:
    """The largest difference of reconstructions and loss on rows x, relative to their size."""
    rows = torch.from_numpy(x)
    ours, theirs = model.loss(rows), other.loss(rows)
    return max(
        float((ours.xhat - theirs.xhat).abs().max() / ours.xhat.abs().max()),
        float((ours.total - theirs.total).abs() / ours.total),
    )


def maps_of(model: SASA) -> "Float[ndarray, 'K D D']":
    """M_k = D_k E_k of every group, acting on column vectors."""
    enc, dec = model.blocks()
    return (enc @ dec).detach().numpy().transpose(0, 2, 1)


def map_distance(maps: "Float[ndarray, 'K D D']", others: "Float[ndarray, 'K D D']") -> float:
    """The largest ||M_k - M'_k||_F once the groups are paired at the least sum of distances."""
    distances = np.linalg.norm(maps[:, None] - others[None], axis=(2, 3))
    return float(distances[optimize.linear_sum_assignment(distances)].max())


def factors(
    map_: "Float[ndarray, 'D D']", rank: int, rng: np.random.Generator
) -> "tuple[Float[ndarray, 'D r'], Float[ndarray, 'r D']]":
    """Some D (D, r) and E (r, D) with D E = M, rank M <= r: a random basis, and free columns where M needs none.

    A column of D whose row of E is zero, and a row of E whose column of D is zero, leave the map as it is.
    """
    u, values, vt = np.linalg.svd(map_)
    kept = int((values > 1e-9 * max(values[0], 1e-300)).sum())
    mix = rng.standard_normal((kept, kept)) + 2 * np.eye(kept)
    decoder = np.hstack((u[:, :kept] * values[:kept] @ mix, np.zeros((len(map_), rank - kept))))
    encoder = np.vstack((np.linalg.inv(mix) @ vt[:kept], np.zeros((rank - kept, len(map_)))))
    for free in range(kept, rank):  # by turns a decoder column nobody reads out and an encoder row nobody writes with
        if free % 2 == kept % 2:
            decoder[:, free] = rng.standard_normal(len(map_))
        else:
            encoder[free] = rng.standard_normal(len(map_))
    return decoder, encoder


# The released objective


class Released(NamedTuple):
    """The best point found for the released objective on one slice."""

    cost: float
    map: "Float[ndarray, 'D D']"
    decoder: "Float[ndarray, 'r D']"


def released_search(
    sigma: "Float[ndarray, 'D D']",
    lam: float,
    rank: int,
    rng: np.random.Generator,
    *,
    penalty: Literal["map", "decoder"] = "decoder",
    unit_encoder: bool = True,
    starts: int = 3,
) -> Released:
    """Least tr((I - M) Sigma (I - M)^T) + lam ||D||_* over M = D E with unit decoder columns, by L-BFGS (C8).

    One group, so the published mean over groups is the norm itself. Encoder rows have unit length too unless told
    otherwise. penalty="map" charges lam ||M||_* in the same parametrisation. The norm has kinks where columns are
    parallel, often the very place to go: each of `starts` descents smooths it less and less, and the best is kept.
    """
    width = len(sigma)
    energy, identity = torch.from_numpy(sigma), torch.eye(width, dtype=torch.float64)

    def parts(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dec, enc = flat.reshape(2, rank, width)
        dec = dec / torch.linalg.vector_norm(dec, dim=1, keepdim=True)
        return dec, enc / torch.linalg.vector_norm(enc, dim=1, keepdim=True) if unit_encoder else enc

    def cost(flat: torch.Tensor, smooth: float) -> torch.Tensor:
        dec, enc = parts(flat)
        map_ = dec.T @ enc
        left = identity - map_
        gram = dec @ dec.T if penalty == "decoder" else map_ @ map_.T
        norm = torch.sqrt(torch.linalg.eigvalsh(gram).clamp_min(0) + smooth**2).sum()
        return torch.sum((left @ energy) * left) + lam * norm

    def descend(flat: ndarray) -> ndarray:
        for smooth in (0.1, 0.01, 1e-3, 1e-5):

            def value_and_gradient(point: ndarray, smooth: float = smooth) -> tuple[float, ndarray]:
                at = torch.from_numpy(point).requires_grad_()
                value = cost(at, smooth)
                return value.item(), torch.autograd.grad(value, at)[0].numpy()

            flat = optimize.minimize(value_and_gradient, flat, jac=True, method="L-BFGS-B").x
        return flat

    found = [descend(rng.standard_normal(2 * rank * width)) for _ in range(starts)]
    costs = [cost(torch.from_numpy(flat), 0.0).item() for flat in found]
    best = int(np.argmin(costs))
    dec, enc = (part.numpy() for part in parts(torch.from_numpy(found[best])))
    return Released(costs[best], dec.T @ enc, dec)


def nearly_parallel(sigma: "Float[ndarray, 'D D']", rank: int, tilt: float = 1e-5) -> "Float[ndarray, 'D r']":
    """Unit decoder columns about `tilt` apart that still span the leading `rank` eigenvectors of Sigma (C8)."""
    frame = np.linalg.eigh(sigma)[1][:, -rank:]
    decoder = frame[:, :1] + tilt * frame
    return decoder / np.linalg.norm(decoder, axis=0)
