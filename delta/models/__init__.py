"""Model builders, splitting a user's model, and what it costs: MACs, parameters, memory, bytes.

The builders below are the import targets that a manifest may name as `delta.models:resnet18`.
"""

from delta.models.bag_model import bag_of_patches
from delta.models.resnet import resnet18, resnet34, resnet_small
from delta.models.square_net import he_cnn

__all__ = ["bag_of_patches", "he_cnn", "resnet18", "resnet34", "resnet_small"]
