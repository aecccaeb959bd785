"""Where features lie in R^D: orthonormal frames V_i^T (d_i, D), random, tight, orthogonal or of prescribed coherence.

The mutual coherence is mu = max_{i != j} ||V_i^T V_j||_2, the cosine of the smallest principal angle between two
features. It cannot be below the Welch bound: sum_ij ||V_i^T V_j||_F^2 = ||sum_i V_i V_i^T||_F^2 >= T^2/D with
T = sum_i d_i, so mu^2 >= (T^2/D - T) / sum_{i != j} min(d_i, d_j).

Inside this module frames are one tensor (n, d_max, D), float64, whose rows past d_i are zero.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from synthetic.errors import UsageError

#: a prescribed coherence is met to this absolute error (the frames are rounded to float32)
COHERENCE_TOLERANCE = 1e-6
_RELAX_STEPS = 400
_CHUNK = 1 << 24
#: pairs whose Frobenius norm is above the best spectral norm by no more than this are not looked at
_NEGLIGIBLE = 1e-8


def random_frames(dims: Sequence[int], width: int, generator: torch.Generator) -> "Float[Tensor, 'T D']":
    """Independent Haar-distributed subspaces: the rows of all frames, stacked (float32).

    Raises UsageError when a dimension is above the width.
    """
    return _stack(_random(dims, width, generator), dims)


def orthogonal_frames(dims: Sequence[int], width: int, generator: torch.Generator) -> "Float[Tensor, 'T D']":
    """Jointly orthogonal frames, V_i^T V_j = 0, as stacked rows; raises UsageError when sum d_i > width."""
    return _stack(_orthogonal(dims, width, generator), dims)


def tight_frames(dims: Sequence[int], width: int, generator: torch.Generator) -> "Float[Tensor, 'T D']":
    """Random frames spread evenly: sum_ij ||V_i^T V_j||_F^2 is brought (near) to T^2/D, the least it can be.

    The random rows R times (R^T R D/T)^(-1/2) are a tight frame; each feature's rows are then made orthonormal again.
    Descent on that sum, as in SynthSAEBench, ends there too. Raises UsageError when sum d_i < width.
    """
    rows, total = _random(dims, width, generator)[_mask(dims)], sum(dims)
    if total < width:
        raise UsageError(
            f"{total} dimensions cannot be tight in width {width}; use orthogonal frames, or more features"
        )
    values, vectors = torch.linalg.eigh(rows.T @ rows * (width / total))
    even = rows @ (vectors * values.rsqrt() @ vectors.T)
    return _stack(_orthonormal(torch.cat((even, even.new_zeros(1, width)))[_padded_rows(torch.tensor(dims))]), dims)


def coherent_frames(
    dims: Sequence[int], width: int, coherence: float, generator: torch.Generator
) -> "Float[Tensor, 'T D']":
    """Frames whose mutual coherence is `coherence` to 1e-6, as stacked rows.

    From random frames one walks towards frames of lower coherence (jointly orthogonal ones, or, where they do not fit,
    frames relaxed until no pair exceeds the target) or towards frames that share one direction; the coherence is
    continuous along the way and the target is found by bracketing. Raises UsageError when it is out of reach.
    """
    _require_fit(dims, width)
    if not 0 <= coherence <= 1:
        raise UsageError(f"coherence is {coherence:g}; expected a number between 0 and 1")
    if len(dims) < 2:
        raise UsageError("one feature alone has no mutual coherence; use random frames or add a feature")
    bound = welch_bound(dims, width)
    if coherence < bound - 1e-12:
        raise UsageError(
            f"coherence {coherence:g} is out of reach: {sum(dims)} dimensions in {width} force at least {bound:.4f}; "
            "raise it, or raise the width"
        )
    if coherence == 0:
        return orthogonal_frames(dims, width, generator)
    start = _random(dims, width, generator)
    reached = _coherence(start, dims)
    if abs(reached - coherence) <= COHERENCE_TOLERANCE / 20:
        return _stack(start, dims)
    if reached > coherence:
        high = start
        if sum(dims) <= width:
            low = _orthogonal(dims, width, generator)
        else:
            low = _relax(start, dims, coherence)
    else:
        low, high = start, start.clone()
        high[:, 0] = torch.nn.functional.normalize(_normal((1, width), generator), dim=1)
        high = _orthonormal(high)
    return _stack(_between(low, high, coherence, dims), dims)


def welch_bound(dims: Sequence[int], width: int) -> float:
    """The least mutual coherence that subspaces of these dimensions can have in R^width, as far as it is proved here.

    The Welch bound above (0 when all fit), or 1 when the two largest subspaces must intersect.
    """
    total, ordered = sum(dims), sorted(dims)
    if len(ordered) < 2:
        return 0.0
    if ordered[-1] + ordered[-2] > width:
        return 1.0
    # sum over ordered pairs i != j of min(d_i, d_j): the k-th smallest is the minimum with everything above it
    pairs = 2 * sum(d * (len(ordered) - 1 - k) for k, d in enumerate(ordered))
    return math.sqrt(max(0.0, total**2 / width - total) / pairs)


def mutual_coherence(rows: "Float[Tensor, 'T D']", dims: Sequence[int]) -> tuple[float, tuple[int, int]]:
    """mu = max_{i != j} ||V_i^T V_j||_2 and the pair that reaches it; (0, (0, 0)) for a single feature.

    One Gram product gives every ||V_i^T V_j||_F, which lies between the spectral norm and sqrt(min(d_i, d_j)) times
    it. Pairs are taken in the order of it, and their small SVDs computed in batches, until no later pair can win.
    """
    n = len(dims)
    if n < 2:
        return 0.0, (0, 0)
    rows = rows.double()
    sizes = torch.tensor(dims)
    table, padded = _padded_rows(sizes), torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
    best, pair = -1.0, (0, 1)
    for first, norms in _block_norms(rows, sizes):
        least = torch.minimum(sizes[first : first + len(norms), None], sizes[None, first:]).double().sqrt()
        floor = max(best, float((norms / least).max()) * (1 - 1e-12))
        i, j = (norms >= floor).triu(diagonal=1).nonzero(as_tuple=True)
        order = norms[i, j].argsort(descending=True)
        for chunk in order.split(512) if len(order) else ():
            if float(norms[i[chunk[0]], j[chunk[0]]]) <= best + _NEGLIGIBLE:
                break
            left, right = i[chunk] + first, j[chunk] + first
            values = torch.linalg.matrix_norm(padded[table[left]] @ padded[table[right]].transpose(1, 2), ord=2)
            top = int(values.argmax())
            if float(values[top]) > best:
                best, pair = float(values[top]), (int(left[top]), int(right[top]))
    return best, pair


def _block_norms(rows: "Float[Tensor, 'T D']", sizes: Tensor) -> "Iterator[tuple[int, Float[Tensor, 'm n']]]":
    """(a, norms) in chunks of features: norms[i, j] = ||V_{a+i}^T V_{a+j}||_F for j > i, zero for j <= i."""
    n, ends = len(sizes), sizes.cumsum(0)
    starts, owner = ends - sizes, torch.repeat_interleave(torch.arange(n), sizes)
    per_chunk = max(1, _CHUNK // (len(rows) * int(sizes.max())))
    for a in range(0, n, per_chunk):
        b = min(n, a + per_chunk)
        rest, part = slice(int(starts[a]), None), slice(int(starts[a]), int(ends[b - 1]))
        gram = (rows[rest] @ rows[part].T).square_()
        columns = gram.new_zeros(n - a, gram.shape[1]).index_add_(0, owner[rest] - a, gram)
        norms = gram.new_zeros(b - a, n - a).index_add_(0, owner[part] - a, columns.T).sqrt_()
        yield a, norms.triu_(diagonal=1)


def _padded_rows(sizes: Tensor) -> Tensor:
    """(n, d_max) positions of each feature's rows in the stack; positions past d_i point behind its end."""
    step = torch.arange(int(sizes.max()))
    position = (sizes.cumsum(0) - sizes)[:, None] + step
    return torch.where(step < sizes[:, None], position, int(sizes.sum()))


def _require_fit(dims: Sequence[int], width: int) -> None:
    if max(dims) > width:
        raise UsageError(f"a feature of dimension {max(dims)} does not fit into width {width}; raise the width")


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _mask(dims: Sequence[int]) -> Tensor:
    return torch.arange(max(dims)) < torch.tensor(dims)[:, None]


def _random(dims: Sequence[int], width: int, generator: torch.Generator) -> "Float[Tensor, 'n d D']":
    _require_fit(dims, width)
    frames = _normal((len(dims), max(dims), width), generator)
    return _orthonormal(frames * _mask(dims)[:, :, None])


def _orthogonal(dims: Sequence[int], width: int, generator: torch.Generator) -> "Float[Tensor, 'n d D']":
    total = sum(dims)
    if total > width:
        raise UsageError(
            f"{total} jointly orthogonal dimensions do not fit into width {width}; use random frames, fewer features "
            "or a larger width"
        )
    rows = torch.linalg.qr(_normal((width, total), generator)).Q.T
    return torch.cat((rows, rows.new_zeros(1, width)))[_padded_rows(torch.tensor(dims))]


def _orthonormal(frames: "Float[Tensor, 'n d D']") -> "Float[Tensor, 'n d D']":
    """Gram-Schmidt of each frame's rows by Cholesky, twice for full accuracy; zero (padding) rows stay zero."""
    padding = torch.diag_embed((frames.abs().amax(dim=2) == 0).to(frames))
    for _ in range(2):
        factor = torch.linalg.cholesky(frames @ frames.transpose(1, 2) + padding)
        frames = torch.linalg.solve_triangular(factor, frames, upper=False)
    return frames


def _stack(frames: "Float[Tensor, 'n d D']", dims: Sequence[int]) -> "Float[Tensor, 'T D']":
    return frames[_mask(dims)].float()


def _coherence(frames: "Float[Tensor, 'n d D']", dims: Sequence[int]) -> float:
    return mutual_coherence(frames[_mask(dims)], dims)[0]


def _relax(frames: "Float[Tensor, 'n d D']", dims: Sequence[int], coherence: float) -> "Float[Tensor, 'n d D']":
    """Frames pushed apart until no pair exceeds `coherence`.

    Descends on sum_{i<j} 1/2 ||V_i^T V_j - its clipping at the target||_F^2: the singular values of each offending
    block are cut to (a little below) the target, and the excess is subtracted from both frames.
    """
    sizes = torch.tensor(dims)
    total = int(sizes.sum())
    table, mask = _padded_rows(sizes), _mask(dims)
    target, best = 0.995 * coherence, math.inf
    for _ in range(_RELAX_STEPS):
        rows = frames[mask]
        reached = mutual_coherence(rows, dims)[0]
        best = min(best, reached)
        if reached <= coherence:
            return frames
        over = torch.cat([(norms > target).nonzero() + first for first, norms in _block_norms(rows, sizes)])
        excess = rows.new_zeros(total + 1, total + 1)
        for i, j in (part.unbind(1) for part in over.split(8192)):
            u, values, v = torch.linalg.svd(frames[i] @ frames[j].transpose(1, 2))
            block = (u * (values - target).clamp_min(0)[:, None, :]) @ v
            excess[table[i][:, :, None], table[j][:, None, :]] = block
        excess = excess[:total, :total]
        step = torch.cat((rows - (excess + excess.T) @ rows, rows.new_zeros(1, rows.shape[1])))
        frames = _orthonormal(step[table])
    raise UsageError(
        f"coherence {coherence:g} is out of reach: {sum(dims)} dimensions in {frames.shape[2]} got no lower than "
        f"{best:.4f}; raise it, or raise the width"
    )


def _between(
    low: "Float[Tensor, 'n d D']", high: "Float[Tensor, 'n d D']", coherence: float, dims: Sequence[int]
) -> "Float[Tensor, 'n d D']":
    """Frames on the way from `low` to `high` whose coherence is the prescribed one."""

    def at(t: float) -> "Float[Tensor, 'n d D']":
        return _orthonormal((1 - t) * low + t * high)

    return at(_root(lambda t: _coherence(at(t), dims) - coherence, COHERENCE_TOLERANCE / 20))


def _root(f: Callable[[float], float], tolerance: float) -> float:
    """t in [0, 1] with |f(t)| <= tolerance, given f(0) <= 0 <= f(1) (Illinois' false position, bisecting if slow)."""
    a, b, fa, fb = 0.0, 1.0, f(0.0), f(1.0)
    side = 0
    for iteration in range(200):
        if abs(fa) <= tolerance:
            return a
        if abs(fb) <= tolerance:
            return b
        t = (a + b) / 2 if iteration % 4 == 3 else (a * fb - b * fa) / (fb - fa)
        value = f(t)
        if value < 0:
            a, fa = t, value
            fb = fb / 2 if side == -1 and abs(fb) > 2 * tolerance else fb
            side = -1
        else:
            b, fb = t, value
            fa = fa / 2 if side == 1 and abs(fa) > 2 * tolerance else fa
            side = 1
    raise UsageError("the prescribed coherence was not bracketed; change the seed or the coherence slightly")
