"""How a model is trained: optimiser, schedule, normalisation, what counts as dead. Nothing about the model itself."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from sasa_theory.models.base import require_number, require_positive
from synthetic.errors import UsageError, unknown

NORMALISE = ("none", "layer_norm", "mean_scalar")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run; raises UsageError for values out of range."""

    steps: int = 3000
    """optimiser steps"""
    batch_size: int = 1024
    """rows (tokens) per step, of each process"""
    lr: float = 1e-3
    """peak learning rate"""
    optimizer: Literal["adam", "adamw"] = "adam"
    """adam, or adamw (decoupled weight decay)"""
    weight_decay: float = 0.0
    """of adamw; must be 0 for adam"""
    betas: tuple[float, float] = (0.9, 0.999)
    """decay rates of the moments"""
    warmup_steps: int = 0
    """steps over which the learning rate rises linearly from 0"""
    decay_fraction: float = 0.2
    """last share of the steps, over which it falls linearly to 0"""
    clip_norm: float | None = 1.0
    """largest gradient norm; None: no clipping"""
    penalty_warmup_steps: int = 0
    """steps over which sparsity and nuclear penalties rise linearly to their coefficients"""
    normalise: Literal["none", "layer_norm", "mean_scalar"] = "none"
    """input normalisation, fitted on the first rows and stored with the model"""
    outlier_cap: float | None = None
    """dimensions whose RMS exceeds this multiple of the median RMS are scaled down to it (mean_scalar only)"""
    initialise: Literal["random", "data"] = "random"
    """start the decoder at random directions or at data points"""
    dead_window: int = 100_000
    """rows over which firing frequency is measured"""
    dead_threshold: float = 0.0
    """a unit is dead when its firing frequency over the window is at or below this"""
    splits: int = 0
    """times, evenly over the first half of the steps, that groups holding two features are split (split_groups.py)"""
    log_every: int = 100
    """steps between lines of log.jsonl"""
    checkpoint_every: int = 1000
    """steps between checkpoints (the last step always writes one)"""
    seed: int = 0
    """of the initial weights and of the order of the data"""
    autocast: bool = True
    """bf16 matrix products on a GPU (never on the CPU)"""

    def __post_init__(self) -> None:
        require_positive(
            steps=self.steps,
            batch_size=self.batch_size,
            dead_window=self.dead_window,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
        )
        require_number(lr=self.lr, weight_decay=self.weight_decay, warmup_steps=self.warmup_steps, seed=self.seed)
        require_number(penalty_warmup_steps=self.penalty_warmup_steps, splits=self.splits)
        require_number(high=1.0, decay_fraction=self.decay_fraction, dead_threshold=self.dead_threshold)
        if self.clip_norm is not None:
            require_number(low=1e-12, clip_norm=self.clip_norm)
        if self.outlier_cap is not None:
            require_number(low=1.0, outlier_cap=self.outlier_cap)
            if self.normalise != "mean_scalar":
                raise UsageError("outlier_cap needs normalise='mean_scalar'; it is a fixed scale per dimension")
        for name, choices in (
            ("optimizer", ("adam", "adamw")),
            ("normalise", NORMALISE),
            ("initialise", ("random", "data")),
        ):
            if getattr(self, name) not in choices:
                raise unknown(name, getattr(self, name), choices)
        if self.optimizer == "adam" and self.weight_decay:
            raise UsageError("weight_decay needs optimizer='adamw'; with adam it would be an l2 penalty")
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UsageError(f"betas is {self.betas}; expected two numbers in [0, 1)")
        object.__setattr__(self, "betas", tuple(self.betas))

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ...: linear warm-up, plateau, linear decay to 0 over the last share."""
        up = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        length = self.decay_fraction * self.steps
        down = min(1.0, (self.steps - step) / length) if length else 1.0
        return self.lr * up * down

    def penalty_scale(self, step: int) -> float:
        """Share of the penalty coefficients in force at a step."""
        return min(1.0, (step + 1) / self.penalty_warmup_steps) if self.penalty_warmup_steps else 1.0

    def splits_after(self, step: int) -> bool:
        """Whether groups are split once `step` steps are done."""
        return (
            step in {self.steps * i // (2 * self.splits) for i in range(1, self.splits + 1)} if self.splits else False
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values; without `splits` where there are none, as in runs made before it."""
        made = {**dataclasses.asdict(self), "betas": list(self.betas)}
        return made if self.splits else {name: value for name, value in made.items() if name != "splits"}
