"""The published SASA step restated plainly: what it computes, in torch's own operators, differentiated by autograd.

    p = (x - b_dec) W_enc + b_enc,   keep the s groups of r columns with the largest ||p_k||, zero the others
    loss = mean ||x - xhat||^2 + nuclear * mean_k ||D_k||_* + auxiliary        (the penalty of C8)

The codes stay a dense (B, K r) tensor, so a step multiplies six dense (B, D, K r) products: encoder and decoder
forward, each with two backward. Before each step decoder rows and encoder columns are scaled to unit length. The
auxiliary loss lets the min(512, dead, D/2) largest pre-activations among the dead columns reconstruct the detached
residual. A column is dead when it has not fired for `dead_window` steps. Written from THEORY.md (C8, E4) and from what
the published code does; none of its text is here.

Its time is to be the published one's too, and at these sizes every further (B, K r) tensor costs a tenth of a product
(its pages are new). So the same ones are made here: the auxiliary loss fills one with -inf, one with the dead
pre-activations and one with their codes, and picks the values by a gather of its own, which autograd undoes by another;
firing is counted from a mask in floats, summed twice; both weights are normalised into new tensors; the metrics that
are logged (cosine, active groups, coverage, stable rank) are computed in every step.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

AUX_COLUMNS = 512


class Result(NamedTuple):
    """A loss, its weighted parts, the dense codes and pre-activations, and what is logged."""

    total: "Float[Tensor, '']"
    parts: "dict[str, Float[Tensor, '']]"
    codes: "Float[Tensor, 'B Kr']"
    pre: "Float[Tensor, 'B Kr']"
    metrics: "dict[str, Float[Tensor, '']]"


class PublishedSASA(nn.Module):
    """The published dictionary: W_enc (D, K r), b_enc, W_dec (K r, D), b_dec; tied unit columns to begin with."""

    def __init__(self, width: int, n_groups: int, rank: int, active: int, nuclear: float = 100.0) -> None:
        super().__init__()
        self.n_groups, self.rank, self.active, self.nuclear = n_groups, rank, active, nuclear
        columns = n_groups * rank
        rows = nn.functional.normalize(torch.randn(columns, width, generator=torch.Generator().manual_seed(0)), dim=1)
        self.W_enc = nn.Parameter(rows.T.contiguous())
        self.b_enc = nn.Parameter(torch.zeros(columns))
        self.W_dec = nn.Parameter(rows.clone())
        self.b_dec = nn.Parameter(torch.zeros(width))

    @torch.no_grad()
    def normalise(self) -> None:
        """Decoder rows and encoder columns to unit length."""
        self.W_dec.data = self.W_dec / self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8)
        self.W_enc.data = self.W_enc / self.W_enc.norm(dim=0, keepdim=True).clamp_min(1e-8)

    def loss(self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' Kr'] | None" = None) -> Result:
        """The training loss; `dead` marks columns for the auxiliary part."""
        pre = (x - self.b_dec) @ self.W_enc + self.b_enc
        groups = pre.unflatten(1, (self.n_groups, self.rank))
        best = groups.norm(dim=-1).topk(self.active, dim=1, sorted=False).indices
        gate = torch.zeros(len(x), self.n_groups, device=x.device, dtype=pre.dtype).scatter_(1, best, 1.0)
        codes = (groups * gate[..., None]).flatten(1)
        xhat = codes @ self.W_dec + self.b_dec
        norms, eigenvalues = nuclear_norms(self.W_dec.unflatten(0, (self.n_groups, self.rank)))
        parts = {
            "reconstruction": (xhat - x).square().sum(-1).mean(),
            "nuclear": self.nuclear * norms.mean(),
            "auxiliary": self.auxiliary(x, xhat, pre, dead),
        }
        metrics = {
            "cosine": (1 - (x * xhat).sum(-1) / (x.norm(dim=-1) * xhat.norm(dim=-1) + 1e-8)).mean(),
            "active": gate.sum(1).mean(),
            "coverage": (gate.sum(0) > 0).float().mean(),
            "stable_rank": (eigenvalues.sum(1) / eigenvalues.amax(1).clamp_min(1e-12)).mean(),
        }
        return Result(sum(parts.values(), x.new_zeros(())), parts, codes, pre, metrics)

    def auxiliary(self, x: Tensor, xhat: Tensor, pre: Tensor, dead: "Tensor | None") -> "Float[Tensor, '']":
        """Mean squared error of the residual as the best dead columns reconstruct it, without the decoder's bias."""
        n_dead = int(dead.sum()) if dead is not None else 0
        best = min(AUX_COLUMNS, n_dead, x.shape[1] // 2)
        if dead is None or best == 0:
            return x.new_zeros(())
        masked = torch.where(dead, pre, torch.full_like(pre, -torch.inf))
        top = masked.topk(best, dim=1).indices
        codes = torch.zeros_like(pre).scatter_(1, top, masked.gather(1, top))
        return (codes @ self.W_dec - (x - xhat).detach()).square().sum(-1).mean()


def nuclear_norms(blocks: "Float[Tensor, 'K r D']") -> "tuple[Float[Tensor, ' K'], Float[Tensor, 'K r']]":
    """||M||_* = <M, U V^T> of each block M = U S V^T, in at least float32, differentiated with U V^T held fixed; S^2.

    U V^T = (M M^T)^{-1/2} M from the eigenvectors of the r x r Gram matrix; directions of eigenvalue zero are left out.
    """
    with torch.no_grad(), torch.autocast(blocks.device.type, enabled=False):
        values, vectors = torch.linalg.eigh(blocks @ blocks.mT)
        kept = values > 1e-6 * values[:, -1:]
        inverse = torch.where(kept, values, 1.0).rsqrt() * kept
        polar = (vectors * inverse[:, None]) @ vectors.mT @ blocks
    return (blocks * polar).sum((1, 2)), values


class PublishedTrainer:
    """The published loop around it: Adam, gradient norm clipped to 1, firing statistics of every column."""

    def __init__(self, model: PublishedSASA, lr: float = 2e-4, dead_window: int = 1000, autocast: bool = False) -> None:
        self.model, self.dead_window, self.autocast = model, dead_window, autocast
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999))
        self.silent_steps = torch.zeros_like(model.b_enc)
        self.frequency = torch.zeros_like(model.b_enc)

    def step(self, x: "Float[Tensor, 'B D']") -> "Float[Tensor, '']":
        """One training step; returns the loss."""
        self.model.normalise()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            result = self.model.loss(x, self.silent_steps > self.dead_window)
        with torch.no_grad():
            fired = result.codes.bool().float()
            self.silent_steps += 1
            self.silent_steps[fired.sum(0).bool()] = 0
            self.frequency += fired.sum(0)
        result.total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return result.total.detach()
