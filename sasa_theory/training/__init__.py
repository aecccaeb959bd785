"""Training: one loop, one checkpoint format, runs that are trained once and shared."""

from sasa_theory.training.firing import FiringTracker
from sasa_theory.training.runs import Job, Run, fit, fit_all
from sasa_theory.training.settings import TrainSettings
from sasa_theory.training.together import fit_together
from sasa_theory.training.trainer import Trainer

__all__ = ["FiringTracker", "Job", "Run", "TrainSettings", "Trainer", "fit", "fit_all", "fit_together"]
