"""AbsTopK (Zhu et al. 2025): the k latents of largest absolute value stay on, with their sign.

    c = (h - b) W_enc + b_enc restricted to its k largest entries in absolute value,   hhat = c W_dec + b

It is `TopK(signed=True)` under a name of its own: SASA with r = 1.
"""

from sasa_theory.models.registry import architectures
from sasa_theory.models.topk import TopK


@architectures.register("abstopk")
class AbsTopK(TopK):
    """AbsTopK autoencoder with `active_latents` latents per token; raises UsageError for k > n_latents."""

    architecture = "abstopk"

    def __init__(self, width_in: int, n_latents: int, active_latents: int, aux_latents: int = 32) -> None:
        super().__init__(width_in, n_latents, active_latents, aux_latents, signed=True)
