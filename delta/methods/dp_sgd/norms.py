"""Group normalisation in the place of batch normalisation: a record's gradient must not depend on its batch."""

from __future__ import annotations

from torch import nn

from delta.errors import ModelError

__all__ = ["groups_for", "with_group_norm"]

_MOST, _CHANNELS = 32, 4


def groups_for(channels: int) -> int:
    """How many groups: the most that divide the channels, at most 32, and of at least 4 channels each.

    A group of one channel would lose its value wherever the map is a single point, as behind a pooling.
    """
    limit = max(1, min(_MOST, channels // _CHANNELS))
    return next(count for count in range(limit, 0, -1) if channels % count == 0)


def with_group_norm(model: nn.Module) -> nn.Module:
    """The model, each batch norm replaced by a fresh group norm (Wu & He 2018, arXiv 1803.08494).

    Both sides of a bundle call this on the same built model, so the same layers come out under the same names.

    Args:
        model: changed in place.

    Raises:
        ModelError: a batch norm does not know its channels yet.
    """
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return _group_norm(model)
    for name, module in list(model.named_modules()):
        for child, norm in list(module.named_children()):
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                if norm.num_features < 1:
                    path = f"{name}.{child}" if name else child
                    raise ModelError(f"layer {path!r} does not know its channels; build it with their number")
                setattr(module, child, _group_norm(norm))
    return model


def _group_norm(norm: nn.modules.batchnorm._BatchNorm) -> nn.GroupNorm:
    return nn.GroupNorm(groups_for(norm.num_features), norm.num_features, eps=norm.eps, affine=norm.affine)
