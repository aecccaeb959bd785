"""Claims, checks and twins (one module per part of THEORY.md); filled by the verify issue."""
