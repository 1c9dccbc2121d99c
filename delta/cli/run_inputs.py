"""What a run of `delta train` starts from: its data and its model, checked before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from delta.errors import ConfigError

if TYPE_CHECKING:
    from delta.data.records import Dataset, DataSplits
    from delta.models.splitting import Parts
    from delta.training.run_config import RunConfig

__all__ = ["build_parts", "load_data", "public_records"]


def load_data(run: RunConfig) -> DataSplits:
    """The records that a configuration names, limited and resampled as it says."""
    from delta.data.load import load_dataset
    from delta.data.resize import resized
    from delta.data.target import load_target

    data = run.data
    if data.source is not None:
        return load_dataset(
            data.source, limit=data.limit, test_limit=data.test_limit, seed=run.seed, size=data.size
        )
    splits = load_target(str(data.target), seed=run.seed)
    splits = splits.limited(data.limit, test_limit=data.test_limit, seed=run.seed)
    return splits if data.size is None else resized(splits, data.size)


def public_records(run: RunConfig, splits: DataSplits) -> Dataset | None:
    """The public records that decide whether the cloud may serve the model; none where nothing is to decide.

    Raises:
        ConfigError: they do not fit the data.
    """
    from delta.data.load import load_dataset

    if isinstance(run.promote, str):
        return None
    public = load_dataset(run.promote.public_data, seed=run.seed, size=run.data.size).test
    if public.class_names != splits.class_names or public.image_shape != splits.image_shape:
        raise ConfigError("promote.public_data differs from the data in classes or image shape")
    return public


def build_parts(run: RunConfig, splits: DataSplits) -> Parts:
    """The whole model, split; ours get classes and channels from the data."""
    import torch

    from delta.models.splitting import split
    from delta.models.targets import build_target, default_arguments, full_target
    from delta.models.weights import load_weights

    target = full_target(run.model.target)
    channels, height, width = splits.image_shape
    own = default_arguments(target, classes=len(splits.class_names), shape=splits.image_shape)
    arguments: dict[str, Any] = {**own, **run.model.arguments}
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        model = build_target(target, arguments, allowed={target})
    if run.model.weights is not None:
        load_weights(model, run.model.weights)
    example = torch.zeros(2, channels, height, width)
    parts = split(model, at=run.model.split_at, example=example, target=target, arguments=arguments)
    if parts.classes != len(splits.class_names):
        raise ConfigError(
            f"the model has {parts.classes} classes, the data {len(splits.class_names)}; give the model's "
            f"arguments, such as model.arguments={{classes: {len(splits.class_names)}}}, or other data"
        )
    return parts
