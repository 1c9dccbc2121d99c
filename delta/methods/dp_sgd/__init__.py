"""The method `dp-sgd`: trained with differential privacy on the private side, served in the clear."""

from delta.methods.dp_sgd.method import DpSgd
from delta.methods.dp_sgd.plan import DpSgdPlan, Spent

__all__ = ["DpSgd", "DpSgdPlan", "Spent"]
