"""An architecture of one's own: TopK whose encoder is always the decoder's transpose. Load it with --plugin.

It is one definition; training, checkpoints and evaluation are shared. Its checkpoint is a TopK checkpoint, as the two
compute the same function. An architecture from scratch defines `settings`, `encode`, `loss` and `export`: see
sasa_theory/models/topk.py.
"""

import torch

from sasa_theory.models import Loss, TopK, architectures


@architectures.register("tied_topk")
class TiedTopK(TopK):
    """hhat = sum over the k largest of relu((h - b) . d_j) d_j + b."""

    architecture = "tied_topk"

    @torch.no_grad()
    def post_step(self, loss: Loss) -> None:
        """Unit decoder rows, then the encoder tied to them."""
        super().post_step(loss)
        self.W_enc.copy_(self.W_dec.T)
