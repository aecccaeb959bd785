"""Streaming calculators: `update(x, xhat, codes, truth)` for each batch, `compute()` for a frozen dataclass.

`evaluate(model, source, n_rows)` runs them over a stream and returns plain JSON in which every number carries its unit
and whether higher or lower is better.
"""

from sasa_theory.evaluation.absorption import Absorption
from sasa_theory.evaluation.base import Calculator, describe
from sasa_theory.evaluation.covering import CoveringResult, covering_numbers
from sasa_theory.evaluation.detection import Detection
from sasa_theory.evaluation.driver import count_owners, evaluate, run, standard_calculators
from sasa_theory.evaluation.factors import FactorRecovery, oracle_recovery
from sasa_theory.evaluation.planted import FeatureEnergy, OwnerCount, decoder_grams, owning_units
from sasa_theory.evaluation.reconstruction import Cosine, DeadShare, ExplainedVariance, Sparsity
from sasa_theory.evaluation.subspaces import (
    Subspaces,
    UnitRanks,
    capture_matrix,
    contribution_directions,
    decoder_cosine,
    map_directions,
    match,
    mean_max_decoder_cosine,
    units_to_span,
)

__all__ = [
    "Absorption",
    "Calculator",
    "Cosine",
    "CoveringResult",
    "DeadShare",
    "Detection",
    "ExplainedVariance",
    "FactorRecovery",
    "FeatureEnergy",
    "OwnerCount",
    "Sparsity",
    "Subspaces",
    "UnitRanks",
    "capture_matrix",
    "contribution_directions",
    "count_owners",
    "covering_numbers",
    "decoder_cosine",
    "decoder_grams",
    "describe",
    "evaluate",
    "map_directions",
    "match",
    "mean_max_decoder_cosine",
    "oracle_recovery",
    "owning_units",
    "run",
    "standard_calculators",
    "units_to_span",
]
