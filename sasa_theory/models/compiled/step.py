"""Loss, gradients and update of a gated model, compiled.

    step = CompiledStep.of(model, optimizer)      None where the plain path has to do
    loss = step.gradients(x, dead, scale)         the Loss of model.loss, gradients in every .grad; None: as above
    step.update(clip_norm)                        what clipping, optimizer.step() and model.constrain() do

The optimiser stays torch's own object: learning rate and moments are read from it and written to it, so a checkpoint
does not know which path made it.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from sasa_theory import parallel
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.codes import Codes
from sasa_theory.models.compiled import gradient_loops, update_loops
from sasa_theory.models.compiled.gate import Chosen, Gate, Then, Thresholds, even
from sasa_theory.models.compiled.workspace import Workspace
from sasa_theory.models.form import GatedForm, unchanged
from sasa_theory.threads import split

CHARGES = {
    None: gradient_loops.NO_CHARGE,
    "map": gradient_loops.MAP,
    "decoder": gradient_loops.DECODER,
    "l1": gradient_loops.L1,
}
FIXES = {
    None: update_loops.FREE,
    "rows": update_loops.UNIT_ROWS,
    "blocks": update_loops.UNIT_BLOCKS,
    "gauge": update_loops.GAUGE,
}


class CompiledStep:
    """Training steps of one model with one optimiser (Adam or AdamW) on a CPU."""

    def __init__(self, model: SparseModel, form: GatedForm, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.form, self.optimizer = model, form, optimizer
        self.space = Workspace()
        #: what follows a threshold decides itself what counts as 0
        self.gate = Gate(self.space, "main", model.rank, form.rectify and form.jump is None)
        self.aux_gate = Gate(self.space, "aux", model.rank, form.rectify)
        #: the smallest of the nested dictionaries that a unit is in; 0 where there is one
        self.band = np.searchsorted(np.array(form.prefixes), np.arange(model.n_units), side="right")
        if not form.prefixes:
            self.band[:] = 0

    @classmethod
    def of(cls, model: SparseModel, optimizer: torch.optim.Optimizer) -> "CompiledStep | None":
        """The compiled step of `model`, or None where only the plain path does what is asked.

        It asks for a gated form that no subclass has changed the loss of, float32 weights on the CPU, the encoder
        stored column by column, and Adam or AdamW as torch defines them.
        """
        form = model.gated_form() if unchanged(type(model)) else None
        weights = [model.W_enc, model.W_dec, *_vectors(model, form)]
        usable = (
            form is not None
            and (form.choice == "row" or (form.rectify and model.rank == 1))
            and (form.penalty != "l1" or (form.rectify and model.rank == 1))
            and (form.jump is None or form.choice == "level")
            and (not form.prefixes or (model.rank == 1 and form.prefixes[-1] == model.n_units))
            and {id(p) for p in model.parameters()} == {id(w) for w in weights}
            and all(w.dtype == torch.float32 and w.device.type == "cpu" for w in weights)
            and all(w.requires_grad for w in weights if w is not model.b_enc)
            and model.W_enc.T.is_contiguous()
            and model.W_dec.is_contiguous()
            and type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
            and len(optimizer.param_groups) == 1
        )
        return cls(model, form, optimizer) if usable and form is not None else None

    # ---- loss and gradients ----------------------------------------------------------------------------------

    @torch.no_grad()
    def gradients(
        self, x: "Float[Tensor, 'B D']", dead: "Bool[Tensor, ' K'] | None" = None, penalty_scale: float = 1.0
    ) -> Loss | None:
        """The loss of a batch, as `model.loss` gives it, with its gradient in every parameter's .grad.

        None, and no gradient, where so many units are on that the plain path is less work (`Gate.exceeding`). All of it
        depends on batch, weights and number of threads alone, so that a resumed run stays equal to the straight one.
        Codes and reconstruction lie in buffers that the next call writes over.
        """
        model, form, space = self.model, self.form, self.space
        rows = x.contiguous().numpy()
        batch, n_units = len(rows), model.n_units
        enc, dec, bias = model.W_enc.T.numpy(), model.W_dec.numpy(), model.b_enc.numpy()
        grad_enc, grad_dec = space("grad enc", enc.shape), space("grad dec", dec.shape)
        grad_b_enc, grad_b_dec = space("grad b_enc", bias.shape), space("grad b_dec", (model.width_in,))

        residuals = space("residual", (max(1, len(form.prefixes)), *rows.shape))
        xhat, residual, error = space("xhat", rows.shape), residuals[-1], space("error", (batch,))
        nested = space("nested", (batch,)) if form.prefixes else None
        totals, shift = self._per_thread("totals", np.float64), model.b_dec.numpy()

        def decode(start: int, stop: int, chosen: Chosen, total: ndarray) -> None:
            of = (start, stop, chosen.units, chosen.values, dec, shift, rows)
            if nested is None:
                gradient_loops.decode(*of, xhat, residual, error, total)
            else:
                gradient_loops.decode_nested(*of, self.band, xhat, residuals, error, nested, total)

        then = Then(decode, totals, batch * form.n_best * model.rank * model.width_in)
        chosen: Chosen | None
        thresholds = self._thresholds()
        if form.choice == "level":
            chosen = self.gate.exceeding(rows, shift, enc, bias, thresholds, then)
        else:
            choose = self.gate.per_batch if form.choice == "batch" else self.gate.per_row
            chosen = choose(rows, shift, enc, bias, form.n_best, then)
        if chosen is None:
            return None
        moved, index, values, _, near = chosen
        parts = {"reconstruction": float(error.sum(dtype=np.float64)) / batch}
        if nested is not None:
            parts["nested"] = float(nested.sum(dtype=np.float64)) / batch

        touched = space("touched", (n_units,), np.bool_)
        touched[:] = False
        auxiliary, aux_sums = self._auxiliary(residual, dead, touched, grad_enc, grad_dec)

        cost, fired = space("cost", (n_units,), np.float64), space("fired", (n_units,), np.int64)
        starts, pairs = gradient_loops.by_unit(index, n_units)
        pulled = self._per_thread("pulled", np.float32)
        price = penalty_scale * (float(form.price()) if callable(form.price) else form.price)
        charge = CHARGES[form.penalty] if price > 0 else gradient_loops.NO_CHARGE
        codes = Codes(torch.from_numpy(index), torch.from_numpy(values), n_units, torch.from_numpy(fired))
        # units charged though none of these rows may use them: all, or those that another process's rows use
        charged = np.full(n_units, form.everyone)
        if charge in (gradient_loops.MAP, gradient_loops.DECODER) and not form.everyone and parallel.world_size() > 1:
            here = Codes(codes.index, codes.values, n_units).counts() > 0
            charged = parallel.any_process(here).numpy()
        split(
            gradient_loops.backward, n_units, starts, pairs, values, self.band, residuals, moved, enc, dec,
            form.rectify, touched, charge, price, charged, grad_enc, grad_dec, grad_b_enc, cost, fired,
            cuts=even(starts), work=3 * len(pairs) * model.rank * model.width_in, own=pulled,
        )  # fmt: skip
        grad_b_dec[:] = -2 / batch * totals.sum(0) - pulled.sum(0)
        if aux_sums is not None:
            grad_b_enc += aux_sums
        if form.penalty is not None:
            parts["sparsity" if form.penalty == "l1" else "nuclear"] = price * float(cost.sum())
        if thresholds is not None and near is not None:
            parts["sparsity"] = self._jump(thresholds, codes, starts, pairs, near, residual, penalty_scale)
        parts["auxiliary"] = auxiliary

        model.W_enc.grad, model.W_dec.grad = torch.from_numpy(grad_enc).T, torch.from_numpy(grad_dec)
        model.b_enc.grad = torch.from_numpy(grad_b_enc) if model.b_enc.requires_grad else None
        model.b_dec.grad = torch.from_numpy(grad_b_dec)
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in parts.items()}
        total = torch.tensor(math.fsum(parts.values()), dtype=torch.float32)
        state = {}
        if form.choice == "batch":
            state["smallest"] = torch.tensor(chosen.smallest)
        elif form.choice == "level":
            state["l0"] = codes.mean_l0()
        return Loss(total, tensors, codes, torch.from_numpy(xhat), state)

    def _thresholds(self) -> Thresholds | None:
        jump = self.form.jump
        return None if jump is None else Thresholds(jump.log_threshold.exp().numpy(), float(jump.bandwidth))

    def _jump(
        self,
        at: Thresholds,
        codes: Codes,
        starts: ndarray,
        pairs: ndarray,
        near: ndarray,
        residual: ndarray,
        scale: float,
    ) -> float:
        """The penalty on L0, and the gradient of the thresholds: by the codes in their windows and by that penalty."""
        jump = self.form.jump
        assert jump is not None
        penalty, slope = jump.charge(codes.mean_l0().float())
        met, count = self.space("met", at.theta.shape, np.float64), self.space("near count", at.theta.shape, np.int64)
        split(
            gradient_loops.at_thresholds, len(met), starts, pairs, near, residual, self.model.W_dec.numpy(), met, count,
            cuts=even(starts), work=len(pairs) * self.model.width_in,
        )  # fmt: skip
        by_theta = (2 * at.theta * met - scale * float(slope) * count) / (len(residual) * at.bandwidth)
        jump.log_threshold.grad = torch.from_numpy((at.theta * by_theta).astype(np.float32))
        return scale * float(penalty)

    def _per_thread(self, name: str, dtype: type) -> ndarray:
        """Zeros, a row (D,) for every thread."""
        held = self.space(name, (torch.get_num_threads(), self.model.width_in), dtype)
        held[:] = 0
        return held

    def _auxiliary(
        self,
        residual: ndarray,
        dead: "Tensor | None",
        touched: ndarray,
        grad_enc: ndarray,
        grad_dec: ndarray,
    ) -> "tuple[float, ndarray | None]":
        """The auxiliary loss; its gradients in the dead units' rows, which it marks as touched, and its bias sums."""
        model, space = self.model, self.space
        which = np.flatnonzero(dead.numpy()) if dead is not None and self.form.n_aux > 0 else None
        if which is None or len(which) == 0:
            return 0.0, None
        enc, dec, bias = model.W_enc.T.numpy(), model.W_dec.numpy(), model.b_enc.numpy()
        columns = (which[:, None] * model.rank + np.arange(model.rank)).ravel()
        n_best = min(self.form.n_aux, len(which))
        own = enc.take(columns, axis=0, out=space("aux enc", (len(columns), model.width_in)), mode="clip")
        left, error = space("aux left", residual.shape), space("aux error", (len(residual),))
        nothing, unkept = np.zeros(model.width_in, np.float32), np.empty((0, 0), np.float32)
        few = dec.take(columns, axis=0, out=space("aux dec", own.shape), mode="clip")

        def decode(start: int, stop: int, chosen: Chosen, total: ndarray) -> None:
            gradient_loops.decode(
                start, stop, chosen.units, chosen.values, few, nothing, residual, unkept, left, error, total
            )

        work = len(residual) * n_best * model.rank * model.width_in
        then = Then(decode, self._per_thread("aux totals", np.float64), work)
        _, place, values, *_ = self.aux_gate.per_row(residual, None, own, bias[columns], n_best, then)
        index = which[place]
        starts, pairs = gradient_loops.by_unit(index, model.n_units)
        sums, cost = space("aux sums", bias.shape), space("cost", (model.n_units,), np.float64)
        fired = space("fired", (model.n_units,), np.int64)
        touched[:] = True
        grad_enc.reshape(model.n_units, -1)[which] = 0
        grad_dec.reshape(model.n_units, -1)[which] = 0
        split(
            gradient_loops.backward, model.n_units, starts, pairs, values, np.zeros_like(self.band), left[None],
            residual, enc, dec, self.form.rectify, touched, gradient_loops.NO_CHARGE, 0.0, touched,
            grad_enc, grad_dec, sums, cost, fired, cuts=even(starts),
            work=3 * values.size * model.width_in, own=np.empty((torch.get_num_threads(), 0), np.float32),
        )  # fmt: skip
        touched[:] = False
        touched[which] = True
        return float(error.sum(dtype=np.float64)) / len(residual), sums

    # ---- update ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, clip_norm: float | None) -> None:
        """Clip the gradient to `clip_norm`, step Adam, apply the model's constraint: one pass over the weights."""
        model, space = self.model, self.space
        vectors = [p for p in _vectors(model, self.form) if p.grad is not None]
        share = 1.0
        if clip_norm is not None:
            share = min(1.0, clip_norm / (self._norm() + 1e-6))
        moments = {id(p): self._moments(p) for p in (model.W_enc, model.W_dec, *vectors)}
        rate = self._rate(share)
        size = space("size", (model.n_units,))
        enc, dec = model.W_enc.T.numpy(), model.W_dec.numpy()
        grad_enc, grad_dec = _grad(model.W_enc).T.numpy(), _grad(model.W_dec).numpy()
        fix = FIXES[self.form.constraint]
        split(
            update_loops.update, model.n_units, rate, model.rank, fix, dec, grad_dec, *moments[id(model.W_dec)],
            enc, grad_enc, *moments[id(model.W_enc)], size, work=4 * enc.size,
        )  # fmt: skip
        for vector in vectors:
            update_loops.adam(rate, vector.numpy(), _grad(vector).numpy(), *moments[id(vector)])
        if fix == update_loops.GAUGE:
            by_unit = model.b_enc.numpy().reshape(model.n_units, model.rank)
            by_unit *= size[:, None]

    def _norm(self) -> float:
        """Length of the whole gradient."""
        model = self.model
        enc, dec = _grad(model.W_enc).T.numpy(), _grad(model.W_dec).numpy()
        squares = self.space("squares", (len(dec),), np.float64)
        split(update_loops.square, len(dec), enc, dec, squares, work=2 * dec.size)
        vectors = [p.grad.numpy() for p in _vectors(model, self.form) if p.grad is not None]
        return math.sqrt(float(squares.sum()) + sum(float(grad @ grad) for grad in vectors))

    def _moments(self, p: Tensor) -> tuple[ndarray, ndarray]:
        """Both moments of p in the optimiser's state, where one more step is counted."""
        state = self.optimizer.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["step"] += 1
        mean, spread = state["exp_avg"], state["exp_avg_sq"]
        return (mean.T.numpy(), spread.T.numpy()) if p is self.model.W_enc else (mean.numpy(), spread.numpy())

    def _rate(self, share: float) -> ndarray:
        """What `update_loops.adam` needs, of the optimiser's one group and the steps counted."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        decay = group["weight_decay"] if isinstance(self.optimizer, torch.optim.AdamW) else 0.0
        t = float(self.optimizer.state[self.model.W_dec]["step"])
        lr, corrected = group["lr"] / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)
        return np.array([share, lr, beta1, beta2, corrected, group["eps"], 1 - group["lr"] * decay], np.float32)


def _vectors(model: SparseModel, form: GatedForm | None) -> list[Tensor]:
    """All that is trained beside the two weights."""
    return [
        model.b_enc,
        model.b_dec,
        *([form.jump.log_threshold] if form is not None and form.jump is not None else []),
    ]


def _grad(p: Tensor) -> Tensor:
    if p.grad is None:
        raise RuntimeError("update was called before gradients")
    return p.grad
