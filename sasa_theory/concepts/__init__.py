"""Concepts of language models: words in templates, circular structure, units that detect them."""

from sasa_theory.concepts.circle import CircularFit, circular_fit, class_means
from sasa_theory.concepts.screening import Detector, best_detector
from sasa_theory.concepts.templates import CONCEPTS, Concept, concept, prompts, templates

__all__ = [
    "CONCEPTS",
    "CircularFit",
    "Concept",
    "Detector",
    "best_detector",
    "circular_fit",
    "class_means",
    "concept",
    "prompts",
    "templates",
]
