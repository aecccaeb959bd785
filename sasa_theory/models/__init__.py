"""Sparse dictionaries: SASA and five vector autoencoders, each a file of `encode` and `loss`."""

from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.batchtopk import BatchTopK
from sasa_theory.models.codes import Codes
from sasa_theory.models.gated import Gated
from sasa_theory.models.jumprelu import JumpReLU
from sasa_theory.models.normaliser import NormalisedModel, Normaliser
from sasa_theory.models.registry import architectures, build
from sasa_theory.models.relu import ReLU
from sasa_theory.models.sasa import SASA
from sasa_theory.models.topk import TopK

__all__ = [
    "SASA",
    "BatchTopK",
    "Codes",
    "Gated",
    "JumpReLU",
    "Loss",
    "NormalisedModel",
    "Normaliser",
    "ReLU",
    "SparseModel",
    "TopK",
    "architectures",
    "build",
]
