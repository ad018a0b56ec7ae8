"""Protocols as pure functions of arrays, one a file."""

from memssl_core.evaluation.geometry import cka, mutual_knn

__all__ = ["cka", "mutual_knn"]
