"""The base of every configuration and manifest: strict, frozen, hashed in one canonical way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from delta.errors import ConfigError

__all__ = ["Strict", "canonical_hash", "explain", "read_change", "read_yaml"]


def canonical_hash(value: Any) -> str:  # noqa: ANN401
    """SHA-256 in hex of a JSON value, written with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def explain(error: ValidationError) -> str:
    """All faults of a rejected value in one line, none of its contents but the offending scalar."""
    faults = []
    for fault in error.errors(include_url=False):
        where = ".".join(str(part) for part in fault["loc"]) or "(top level)"
        value = fault.get("input")
        got = (
            f", got {value!r}" if isinstance(value, (bool, int, float, str)) and len(str(value)) < 60 else ""
        )
        faults.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}{got}")
    return "; ".join(faults)


def read_change(change: str, *, option: str = "--set") -> tuple[list[str], Any]:
    """`outer.inner=value`, the value in YAML → the keys, and the value.

    Raises:
        ConfigError: it is no such text.
    """
    keys, equals, text = change.partition("=")
    if not equals or not all(keys.split(".")):
        raise ConfigError(f"{option} {change!r} is no change; write key=value, such as noise={{epsilon: 8}}")
    try:
        return keys.split("."), yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{option} {change!r}: {text!r} is not YAML") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a YAML file; an empty one has none.

    Raises:
        ConfigError: the file is absent, no YAML, or holds something else than settings.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not YAML: {str(error).splitlines()[0]}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"config {path} holds no settings; see the files under configs/")
    return value


class Strict(BaseModel):
    """A configuration: unknown keys are refused, values are never changed, all faults are reported at once."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, value: Any, *, what: str) -> Self:  # noqa: ANN401
        """Validate plain data; `what` names it in the error.

        Raises:
            ConfigError: one line with every fault.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ConfigError(f"{what}: {explain(error)}") from None

    @classmethod
    def read_yaml(cls, path: Path) -> Self:
        """Read and validate a YAML file.

        Raises:
            ConfigError: the file is absent, no YAML, or not valid.
        """
        return cls.parse(read_yaml(path), what=f"config {path}")

    def content_hash(self) -> str:
        """SHA-256 in hex over the canonical JSON of all fields."""
        return canonical_hash(self.model_dump(mode="json"))
