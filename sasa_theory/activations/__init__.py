"""Activations of real language models: read through forward hooks, kept in a sharded store, streamed to training."""

from sasa_theory.activations.gather import Gathered, write_activations
from sasa_theory.activations.language_model import Activations, LanguageModel
from sasa_theory.activations.live import LiveActivations
from sasa_theory.activations.store import ActivationStore
from sasa_theory.activations.text import Texts, read_text
from sasa_theory.activations.writer import StoreWriter

__all__ = [
    "ActivationStore",
    "Activations",
    "Gathered",
    "LanguageModel",
    "LiveActivations",
    "StoreWriter",
    "Texts",
    "read_text",
    "write_activations",
]
