"""SASA as a class of SAELens (needs the `saelens` extra; registered by `sasa_theory.saelens.register`).

pre = x W_enc + b_enc as (..., n_groups, group_rank);  keep the k_groups groups of largest norm;  xhat = c W_dec + b_dec
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAE, SAEConfig
from torch import Tensor, nn


@dataclass
class TopKSASAConfig(SAEConfig):
    """Fields of a `topk_sasa` cfg.json; d_sae = n_groups * group_rank."""

    n_groups: int = 1
    group_rank: int = 1
    k_groups: int = 1

    @classmethod
    def architecture(cls) -> str:
        return "topk_sasa"


class TopKSASA(SAE[TopKSASAConfig]):
    """Inference-only SASA; feature activations are the signed coefficients, zero outside the groups that are on."""

    b_enc: nn.Parameter

    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, dtype=self.dtype, device=self.device))

    def encode(self, x: "Float[Tensor, '... D']") -> "Float[Tensor, '... Kr']":
        """Signed coefficients of the k_groups groups of largest norm."""
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        groups = pre.unflatten(-1, (self.cfg.n_groups, self.cfg.group_rank))
        best = groups.square().sum(-1).topk(self.cfg.k_groups, dim=-1, sorted=False).indices
        on = torch.zeros_like(groups[..., 0]).scatter_(-1, best, 1.0)
        return self.hook_sae_acts_post((groups * on[..., None]).flatten(-2))

    def decode(self, feature_acts: "Float[Tensor, '... Kr']") -> "Float[Tensor, '... D']":
        """c W_dec + b_dec, with the input normalisation undone."""
        out = self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)
