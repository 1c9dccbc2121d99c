"""Taps by name."""

from __future__ import annotations

from collections.abc import Collection

from delta.attacks.method_tap import MethodTap
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import RandomBitsTap, RawInputTap, RawIrTap, Tap
from delta.bundle.store import Bundle
from delta.errors import ConfigError

__all__ = ["tap_names", "tap_of"]


def tap_names(bundle: Bundle) -> tuple[str, ...]:
    """The taps that a bundle has: what leaves, then the positive and the negative control."""
    if bundle.manifest.method == "delta":
        return (ReleaseTap.name, RawIrTap.name, RandomBitsTap.name)
    return (bundle.manifest.method, RawInputTap.name, RandomBitsTap.name)


def tap_of(bundle: Bundle, name: str, *, allow: Collection[str] = ()) -> Tap:
    """A tap of a bundle.

    Args:
        bundle: the whole bundle.
        name: one of `tap_names`.
        allow: import targets that the bundle may build.

    Raises:
        ConfigError: the bundle has no tap of that name.
        MethodError: its method sends nothing, or nothing that these attacks can learn from.
        BundleError: the bundle's target needs leave.
    """
    known = tap_names(bundle)
    if name not in known:
        raise ConfigError(
            f"unknown tap {name!r}; a bundle of method {bundle.manifest.method!r} has {', '.join(known)}"
        )
    if name == ReleaseTap.name:
        return ReleaseTap(bundle, allow=allow)
    if name == RawIrTap.name:
        return RawIrTap(bundle, allow=allow)
    if name == RawInputTap.name:
        return RawInputTap(bundle.manifest.input.shape)
    if name == RandomBitsTap.name:
        release = bundle.manifest.release
        return RandomBitsTap(bundle.manifest.input.shape if release is None else release.message.shape)
    return MethodTap(bundle, allow=allow)
