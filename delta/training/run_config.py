"""A whole run as a YAML file: the model, the data and the training of Delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from delta.config import Strict, read_change, read_yaml
from delta.errors import ConfigError
from delta.training.config import TrainConfig

__all__ = ["DataConfig", "ModelConfig", "PromoteConfig", "RunConfig"]

_WORDS = {"data": "source", "labels": "kind", "message": "map"}
"""Settings that a word may stand for, and which of their fields it then is."""
_TARGET = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


class ModelConfig(Strict):
    """The whole model, which is split, and is the main model's teacher.

    Attributes:
        target: `resnet18`, `resnet34`, `resnet_small`, or the user's own as `package.module:callable`.
        arguments: keyword arguments of the target; classes and channels of ours come from the data.
        weights: a safetensors file; with it the model counts as trained, unless `whole` is given.
        split_at: the first module that runs in the cloud.
    """

    target: str = "resnet_small"
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Path | None = None
    split_at: str = "layer1"


class DataConfig(Strict):
    """The data: a source by name, or a callable of the user's.

    Attributes:
        source: what `delta.load_dataset` takes, such as `embedded` or `cifar10:data`.
        target: `package.module:callable` that returns training and test records; instead of `source`.
        limit: training records at most, each class in proportion.
        test_limit: test records at most; by default they are cut in the same proportion.
        size: (height, width) to resample to.
    """

    source: str | None = None
    target: str | None = Field(default=None, pattern=_TARGET)
    limit: int | None = Field(default=None, ge=2)
    test_limit: int | None = Field(default=None, ge=1)
    size: tuple[int, int] | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_word_will_do(cls, value: Any) -> Any:  # noqa: ANN401
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.target is None):
            raise ValueError(
                "data needs a source such as embedded, or a target package.module:callable, not both"
            )
        return self


class PromoteConfig(Strict):
    """When the cloud may serve what it has trained: decided on data declared public, never on private records.

    Attributes:
        public_data: a source whose test records are public, of the same classes and shape.
        min_cloud_accuracy: percent that the cloud model alone must reach on it.
    """

    public_data: str
    min_cloud_accuracy: float = Field(ge=0, le=100)


class RunConfig(TrainConfig):
    """A run: the fields of `TrainConfig`, and what it runs on.

    Attributes:
        model: the whole model.
        data: training and test records.
        promote: whether the cloud serves the trained model at once: `always`, `never`, or by public data.
    """

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig(source="embedded")
    promote: Literal["always", "never"] | PromoteConfig = "never"

    @model_validator(mode="before")
    @classmethod
    def _weights_count_as_trained(cls, value: Any) -> Any:  # noqa: ANN401
        model = value.get("model") if isinstance(value, dict) else None
        if isinstance(model, dict) and model.get("weights") is not None and "whole" not in value:
            return {**value, "whole": None}
        return value

    @property
    def training(self) -> TrainConfig:
        """The settings of training alone."""
        own = {"model", "data", "promote"}
        return TrainConfig.model_validate(self.model_dump(exclude=own, exclude_unset=True))

    @classmethod
    def read(cls, path: Path, *, changes: tuple[str, ...] = ()) -> RunConfig:
        """Read a YAML file, with single settings changed by `key=value` or `outer.inner=value`.

        Raises:
            ConfigError: the file is absent, no YAML or not valid, or a change is malformed.
        """
        value = read_yaml(path)
        value.setdefault("data", "embedded")
        for change in changes:
            (*outer, last), new = read_change(change)
            place = value
            for key in outer:
                inner = place.get(key)
                if (
                    isinstance(inner, str) and key in _WORDS
                ):  # so that `data.limit` can be set beside the word
                    inner = {_WORDS[key]: inner}
                place[key] = place = dict(inner) if isinstance(inner, dict) else {}
            place[last] = new
        what = f"config {path}"
        if "noise" not in value:
            raise ConfigError(
                f"{what}: noise is not set: say noise: none (no privacy claim) or {{epsilon: 8}}"
            )
        return cls.parse(value, what=what)
