"""Sparse dictionaries: SASA, the vector autoencoders and the block featurizers, each a file of `encode` and `loss`."""

from sasa_theory.models.abstopk import AbsTopK
from sasa_theory.models.base import Loss, SparseModel
from sasa_theory.models.batchtopk import BatchTopK
from sasa_theory.models.bsf import BSF
from sasa_theory.models.codes import Codes
from sasa_theory.models.gated import Gated
from sasa_theory.models.grassmannian import Grassmannian
from sasa_theory.models.grouplasso import GroupLasso
from sasa_theory.models.jumprelu import JumpReLU
from sasa_theory.models.matryoshka import Matryoshka
from sasa_theory.models.normaliser import NormalisedModel, Normaliser
from sasa_theory.models.registry import architectures, build
from sasa_theory.models.relu import ReLU
from sasa_theory.models.sasa import SASA
from sasa_theory.models.topk import TopK

__all__ = [
    "BSF",
    "SASA",
    "AbsTopK",
    "BatchTopK",
    "Codes",
    "Gated",
    "Grassmannian",
    "GroupLasso",
    "JumpReLU",
    "Loss",
    "Matryoshka",
    "NormalisedModel",
    "Normaliser",
    "ReLU",
    "SparseModel",
    "TopK",
    "architectures",
    "build",
]
