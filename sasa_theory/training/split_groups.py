"""Split the groups that hold two features, and let the second half take the place of the weakest group.

Two features whose dimensions add to at most r fit into one group. Reconstruction loses little by it, a spare group
falls silent or follows noise, and no gradient undoes it: of 64 planted features a third ended so. But the coefficients
tell. With one feature in the group they fill one subspace of R^r; with two, rows hold one feature or the other, and the
coefficients lie in the union of two. So, with w the whitened coefficients of a group on the rows where it is on,

    w ~ share N(0, S_1) + (1 - share) N(0, S_2)       fitted by EM, against w ~ N(0, I)

and where the mixture is likelier, S_1 - S_2 is positive on one feature's subspace, negative on the other's: its
eigenvectors split the group. A split stays unless it raises the training loss on a quarter of the rows by more than
SLACK of the energy of the group, so neither a mixture that means nothing nor the loss of the weakest group can do much
harm. (Some slack, because merged features may share directions that training must first pull apart, and because where
one feature is on in a row merged groups cost the same, or less by what C2 says.) Features that are often on together,
in every fourth row that has one of them, may stay in one group. All is decided by the weights, the rows and the
generator: a resumed run splits as the straight one.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sasa_theory.models.base import SparseModel
from sasa_theory.models.codes import Codes
from synthetic.errors import UsageError

#: rows on which each group should be on, for its covariances of r (r + 1) / 2 entries
ROWS_PER_GROUP = 512
#: likelihood a row, in nats, that a mixture must gain before its split is tried; 512 rows of one Gaussian gain about .1
GAIN = 0.2
#: what a split may add to the loss, as a share of the group's energy. Two features of 6 dimensions in a group of 10 add
#: 6 to 8 %, which training takes back; with .01 such pairs stayed for good
SLACK = 0.1
#: splits refused one after another, best first, after which the others are not tried
PATIENCE = 10
STARTS, ROUNDS = 4, 25
#: directions with less than this share of a group's largest energy are left out, and dropped by a split
FLOOR = 0.01
#: added to covariances in whitened units: a subspace has no density
RIDGE = 0.01
CHUNK = 8192


@dataclass(frozen=True)
class Mixture:
    """Two zero-mean Gaussians fitted to the whitened coefficients of each group.

    gain   (K,) log likelihood a row over one Gaussian, in nats.
    first, second  (K, r, r) covariances.
    """

    gain: "Float[Tensor, ' K']"
    first: "Float[Tensor, 'K r r']"
    second: "Float[Tensor, 'K r r']"


def rows_needed(model: SparseModel) -> int:
    """Rows on which a group is on ROWS_PER_GROUP times, on average; raises UsageError where nothing can be split."""
    form = model.gated_form()
    if form is None or form.rectify or not 1 < model.rank <= model.width_in:
        raise UsageError(
            f"a {model.architecture!r} of rank {model.rank} cannot be split: only signed groups of more than one "
            "column, chosen by a gate, hold two features; train it with splits=0"
        )
    return -(-ROWS_PER_GROUP * model.n_units // form.n_best)


@torch.no_grad()
def split_groups(
    model: SparseModel, rows: "Float[Tensor, 'n D']", generator: torch.Generator, penalty_scale: float = 1.0
) -> list[tuple[int, int]]:
    """Split merged groups of `model` in place; returns the pairs (group, place of its second half).

    rows (n, D) normalised data; `generator` draws EM's starts; `penalty_scale` as in `model.loss`.
    """
    codes = model.encode(rows)
    values, on = unit_values(codes, ROWS_PER_GROUP)
    _, decoder = model.blocks()
    values, decoder = values.double(), decoder.double()
    counts = codes.counts().double()
    moment = values.transpose(1, 2) @ values / on.sum(dim=1).clamp_min(1)[:, None, None]
    whiten = whitening(moment, decoder)
    energy = counts * (moment * (decoder @ decoder.transpose(1, 2))).sum(dim=(1, 2))
    mixture = fit_mixture((values @ whiten).float(), on, generator)
    spare = energy.argsort().tolist()
    merged = [k for k in (mixture.gain * counts).argsort(descending=True).tolist() if mixture.gain[k] > GAIN]
    done: list[tuple[int, int]] = []
    changed: set[int] = set()
    judged = rows[::4]
    best, refused = mean_loss(model, judged, penalty_scale), 0
    for k in merged:
        place = next((j for j in spare if j != k and j not in changed), None)
        if k in changed or place is None or refused == PATIENCE:
            continue
        sign, axes = torch.linalg.eigh((mixture.first[k] - mixture.second[k]).double())
        parts = axes[:, sign > 1e-6], axes[:, sign < -1e-6]
        if not all(part.shape[1] for part in parts):
            continue  # one feature, at two scales
        weights = model.W_enc, model.b_enc, model.W_dec
        held = [tensor.clone() for tensor in weights]
        outward = whiten[k].T @ moment[k] @ decoder[k]  # E[w^T contribution]: back from whitened coefficients
        for unit, part in zip((k, place), parts, strict=True):
            _put(model, unit, k, held, whiten[k] @ part, part.T @ outward)
        loss = mean_loss(model, judged, penalty_scale)
        if loss < best + SLACK * float(energy[k]) / len(rows):
            best, refused = loss, 0
            done.append((k, place))
            changed |= {k, place}
        else:
            refused += 1
            for tensor, before in zip(weights, held, strict=True):
                tensor.copy_(before)
    return done


def unit_values(codes: Codes, most: int) -> "tuple[Float[Tensor, 'K m r'], Bool[Tensor, 'K m']]":
    """The coefficients of every group on the first `most` rows where it is on, and which entries are such rows."""
    _, unit, values = codes.pairs()
    order = unit.argsort(stable=True)
    counts = torch.bincount(unit, minlength=codes.n_units)
    slot = torch.arange(min(most, max(1, int(counts.max()))), device=unit.device)
    on = slot < counts[:, None]
    place = (counts.cumsum(0) - counts)[:, None] + slot
    picked = values[order[place.clamp_max(len(order) - 1)]]
    return picked * on[..., None], on


def whitening(moment: "Float[Tensor, 'K r r']", decoder: "Float[Tensor, 'K r D']") -> "Float[Tensor, 'K r r']":
    """A_k such that w = p A_k has unit second moment along each direction of the contribution p D_k; else zero."""
    values, vectors = torch.linalg.eigh(decoder @ decoder.transpose(1, 2))
    root = vectors * values.clamp_min(0).sqrt()[:, None, :]  # ||p D|| = ||p root||
    energies, axes = torch.linalg.eigh(root.transpose(1, 2) @ moment @ root)
    keep = (energies > FLOOR * energies[:, -1:]) & (energies > 0)
    return root @ axes * torch.where(keep, energies.clamp_min(1e-300).rsqrt(), 0.0)[:, None, :]


def fit_mixture(w: "Float[Tensor, 'K m r']", on: "Bool[Tensor, 'K m']", generator: torch.Generator) -> Mixture:
    """EM for two zero-mean Gaussians in every group; the likeliest of STARTS starts.

    A start puts the three tenths of the rows that point most along one drawn row into the first Gaussian. Rows are
    whitened, `on` says which entries are rows; a direction in which all are zero is left out.
    """
    units, _, r = w.shape
    seen = on.sum(dim=1).clamp_min(1)
    drawn = (torch.rand(STARTS, units, generator=generator).to(w) * seen).long()
    w, on = w.expand(STARTS, -1, -1, -1), on.expand(STARTS, -1, -1)
    seed = w.gather(2, drawn[..., None, None].expand(-1, -1, 1, r))
    norm = torch.linalg.vector_norm(w, dim=3).clamp_min(1e-12)
    cosine = torch.where(on, (w * seed).sum(dim=3).abs() / norm, -1.0)
    cut = cosine.sort(dim=2, descending=True).values.gather(2, (0.3 * seen).long().expand(STARTS, -1)[..., None])
    first = torch.where(cosine > cut, 0.9, 0.1).to(w)
    floor = torch.diag_embed(torch.where((w != 0).any(dim=2), RIDGE, 1.0))  # directions left out are N(0, 1) throughout
    likelihood, spread = w.new_zeros(()), w.new_zeros(())
    for _ in range(ROUNDS):
        share = torch.stack([first, 1 - first]) * on
        mass = share.sum(dim=3).clamp_min(1e-6)
        spread = (share[..., None] * w).transpose(3, 4) @ w / mass[..., None, None] + floor
        factor = torch.linalg.cholesky(spread)
        size = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        distance = (w @ torch.cholesky_inverse(factor) * w).sum(dim=4)
        density = (mass / seen).log()[..., None] - 0.5 * distance - size[..., None]
        likelihood = torch.logsumexp(density, dim=0)
        first = torch.softmax(density, dim=0)[0]
    gain = ((likelihood + 0.5 * w.square().sum(dim=3)) * on).sum(dim=2) / seen
    best = gain.argmax(dim=0)
    unit = torch.arange(units, device=w.device)
    return Mixture(gain[best, unit], spread[0, best, unit], spread[1, best, unit])


@torch.no_grad()
def mean_loss(model: SparseModel, rows: "Float[Tensor, 'n D']", penalty_scale: float) -> float:
    """The training loss on many rows, chunk by chunk."""
    parts = rows.split(CHUNK)
    return sum(len(part) / len(rows) * float(model.loss(part, None, penalty_scale).total) for part in parts)


def _put(
    model: SparseModel,
    unit: int,
    parent: int,
    held: list[Tensor],
    inward: "Float[Tensor, 'r m']",
    outward: "Float[Tensor, 'm D']",
) -> None:
    """Give `unit` the parent's coefficients p inward, with the decoder rows outward, on orthonormal decoder rows.

    held: W_enc and b_enc before the split. The rows beyond m complete the block, orthonormal too, with encoder columns
    zero: they are not used yet, but can be learned.
    """
    r, m = model.rank, len(outward)
    here, there = (slice(k * r, (k + 1) * r) for k in (unit, parent))
    old = model.W_dec[here].double()
    frame, triangle = torch.linalg.qr(outward.T)  # outward^T = frame triangle
    rest = torch.linalg.qr(torch.cat([frame, old.T], dim=1)).Q[:, m:r]
    turn = torch.zeros(r, r, dtype=torch.float64, device=old.device)
    turn[:, :m] = inward @ triangle.T
    model.W_dec[here] = torch.cat([frame, rest], dim=1).T.to(model.W_dec)
    model.W_enc[:, here] = (held[0][:, there].double() @ turn).to(model.W_enc)
    model.b_enc[here] = (held[1][there].double() @ turn).to(model.b_enc)
