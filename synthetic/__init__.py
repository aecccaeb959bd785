"""Data with planted truth: manifolds placed in R^D, who is active, and endless streams of rows; no models here."""

from synthetic.batch import Batch, FrameTable
from synthetic.features import Feature, Kind, Magnitude
from synthetic.manifolds import Manifold, Parametric, manifolds
from synthetic.placement import coherent_frames, mutual_coherence, orthogonal_frames, random_frames, welch_bound
from synthetic.spec import world_names
from synthetic.stream import WorldStream
from synthetic.support import Support
from synthetic.world import World, WorldStatistics

__all__ = [
    "Batch",
    "Feature",
    "FrameTable",
    "Kind",
    "Magnitude",
    "Manifold",
    "Parametric",
    "Support",
    "World",
    "WorldStatistics",
    "WorldStream",
    "coherent_frames",
    "manifolds",
    "mutual_coherence",
    "orthogonal_frames",
    "random_frames",
    "welch_bound",
    "world_names",
]
