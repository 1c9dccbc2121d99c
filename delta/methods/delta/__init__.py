"""The method `delta`: the principal part stays private, one-bit releases of the residual go to the cloud."""

from delta.methods.delta.cloud import DeltaCloud, build_cloud_model
from delta.methods.delta.fusion import certified_fraction, fuse
from delta.methods.delta.parts import PrivateParts, build_private_parts
from delta.methods.delta.private import DeltaMethod

__all__ = [
    "DeltaCloud",
    "DeltaMethod",
    "PrivateParts",
    "build_cloud_model",
    "build_private_parts",
    "certified_fraction",
    "fuse",
]
