"""Figures on the activations of real language models; study.py is what they share."""
