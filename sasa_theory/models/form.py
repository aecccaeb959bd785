"""What a faster training step must know of a gated model: how its loss is made, in numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

#: how far below their thresholds units are looked at, in bandwidths: beyond the window, which is looked at again
WINDOW = 0.5 + 1e-3


@dataclass(frozen=True)
class Jump:
    """A learned threshold theta = exp(log_threshold) for each unit, below which its coefficient counts as 0 (JumpReLU).

    log_threshold  (K,), trained: within half a bandwidth of theta, 1{p > theta} counts as falling by 1 / bandwidth in
                   theta, both in the codes and in L0.
    charge         L0 -> the penalty on it, and its derivative.
    """

    log_threshold: nn.Parameter
    bandwidth: Tensor
    charge: "Callable[[Float[Tensor, '']], tuple[Float[Tensor, ''], Float[Tensor, '']]]"


@dataclass(frozen=True)
class GatedForm:
    """Gate of rectified or signed codes, linear decoder, mean square error, auxiliary loss, constraint, charge.

    n_best      units on per row (s): the largest of each "row", or the B s largest of the "batch"; 0 where `choice` is
                "level": all that exceed 0, or the thresholds of `jump`.
    rectify     negative coefficients count as zero.
    n_aux       dead units asked to explain each row's residual.
    constraint  what follows a step: decoder rows of length 1, decoder blocks of Frobenius norm sqrt(r), the same with
                the encoder scaled back ("gauge": every map stays), or nothing.
    prefixes    sizes of nested dictionaries, the last of all units: each must reconstruct by itself; () for one alone.
    penalty     `price` times the nuclear norm of the map or of the decoder block, of each unit that is on or of
                `everyone`; or, "l1", times the mean over rows of sum_k c_k ||d_k||.
    price       a number, or what gives it at every step.
    """

    n_best: int
    rectify: bool
    n_aux: int
    constraint: Literal["rows", "blocks", "gauge"] | None = None
    penalty: Literal["map", "decoder", "l1"] | None = None
    price: float | Callable[[], Tensor] = 0.0
    everyone: bool = False
    choice: Literal["row", "batch", "level"] = "row"
    prefixes: tuple[int, ...] = ()
    jump: Jump | None = None


def unchanged(kind: type) -> bool:
    """Whether the class that gives the form also has the last word on everything that the form says."""
    said = (
        "loss",
        "encode",
        "decode",
        "post_step",
        "observe",
        "nuclear_penalty",
        "pre_activations",
        "training_rows",
        "charge",
        "threshold",
    )
    owner = next(base for base in kind.__mro__ if "gated_form" in vars(base))
    return all(getattr(kind, name, None) is getattr(owner, name, None) for name in said)
