"""Which unit detects a concept: ranked on one split, judged on another.

A unit's score on a token is the norm of its coefficients (|code| of a latent, ||p_k|| of a group). The unit and its
threshold are those of the largest F1 on the selection split; F1 and AUC are then read off the held-out split.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from synthetic.errors import UsageError


@dataclass(frozen=True)
class Detector:
    """The best unit for a concept: its index and threshold (chosen), F1 and AUC (held out; higher is better)."""

    unit: int
    threshold: float
    f1_selected: float
    f1: float
    auc: float


def best_f1(score: "Float[np.ndarray, ' n']", positive: "Bool[np.ndarray, ' n']") -> tuple[float, float]:
    """Largest F1 over thresholds t of the rule score >= t, with t > 0, and that t (inf when no score is positive)."""
    on = score > 0
    order = np.argsort(-score[on], kind="stable")
    values, hits = score[on][order], positive[on][order].cumsum()
    if len(values) == 0:
        return 0.0, float("inf")
    last = np.append(values[1:] != values[:-1], True)  # a threshold takes all tied scores or none
    f1 = 2 * hits / (np.arange(1, len(values) + 1) + positive.sum())
    f1 = np.where(last, f1, -1.0)
    best = int(f1.argmax())
    return float(f1[best]), float(values[best])


def auc(score: "Float[np.ndarray, ' n']", positive: "Bool[np.ndarray, ' n']") -> float:
    """Area under the ROC curve, P(score+ > score-) + P(tie)/2; raises UsageError when one class is empty."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        raise UsageError("AUC needs tokens with and without the concept")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def best_detector(
    scores: "Float[np.ndarray, 'n K']", positive: "Bool[np.ndarray, ' n']", selection: "Bool[np.ndarray, ' n']"
) -> Detector:
    """The unit of largest F1 on the rows of `selection`, judged on the other rows.

    scores (n tokens, K units) >= 0; positive marks tokens of the concept. Raises UsageError when either split lacks
    tokens of either class.
    """
    for split, name in ((selection, "selection"), (~selection, "held-out")):
        if not positive[split].any() or positive[split].all():
            raise UsageError(f"the {name} split needs tokens with and without the concept")
    chosen = [best_f1(column, positive[selection]) for column in scores[selection].T]
    unit = int(np.argmax([f1 for f1, _ in chosen]))
    f1_selected, threshold = chosen[unit]
    held, truth = scores[~selection, unit], positive[~selection]
    hits = int((truth & (held >= threshold)).sum())
    fired = int((held >= threshold).sum())
    return Detector(unit, threshold, f1_selected, 2 * hits / (fired + int(truth.sum())), auc(held, truth))
