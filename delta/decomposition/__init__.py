"""Bases (svd, pca, block DCT) and the split of an intermediate representation into principal and residual."""

from delta.decomposition.decomposer import Decomposer, Decomposition

__all__ = ["Decomposer", "Decomposition"]
