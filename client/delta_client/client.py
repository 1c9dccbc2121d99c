"""The private side in one object: a bundle, its method and a session with a cloud."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from delta.bundle.manifest import Manifest
from delta.bundle.store import Bundle, load_bundle
from delta.methods.base import Method, Prediction, RecordIds
from delta.methods.registry import method_class
from delta.release.noise import NoiseKey
from delta_client.transport import GrpcTransport

__all__ = ["Client"]


class Client:
    """Runs a bundle's private half against a cloud; a context manager.

    An absent cloud is no error here: predictions then say why they did without it, or fail where the method's
    private side has no model of its own.

    Args:
        bundle: a whole bundle, or its folder.
        cloud: HOST:PORT; none to do without a cloud.
        deadline_s: how long a prediction may wait for the cloud, seconds.
        key: the noise key, or its file; none takes `noise.key` beside a bundle given by its folder, drawn on
            first use, where the method's releases have noise.
        options: the method's own, such as `allow`: import targets that the bundle may build on this side, or
            `ledger`: a `DiskLedger`, so that what was released outlives the process.

    Raises:
        BundleError: the bundle is damaged or holds only the cloud part.
        UnknownMethodError: its method is not registered.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        *,
        cloud: str | None,
        deadline_s: float = 10.0,
        key: NoiseKey | Path | str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        whole = bundle if isinstance(bundle, Bundle) else load_bundle(Path(bundle))
        cls, release = method_class(whole.manifest.method), whole.manifest.release
        keyed = cls.facts.releases and not (release is not None and not release.keyed)
        if isinstance(key, (str, Path)):
            options["key"] = NoiseKey.load(Path(key))
        elif key is not None:
            options["key"] = key
        elif keyed and not isinstance(bundle, Bundle):
            options["key"] = NoiseKey.beside(Path(bundle))
        self._manifest = whole.manifest
        self._method = cls.from_bundle(whole, **options)
        self._transport: GrpcTransport | None = None
        if cloud is not None:
            self._transport = GrpcTransport(
                cloud,
                whole.manifest.binding,
                payload_bytes=release.payload_bytes if release is not None else None,
                classes=len(whole.manifest.class_names) if release is not None else None,
                connect_timeout_s=min(5.0, deadline_s),
            )
        try:
            self._method.prepare(self._transport, deadline_s=deadline_s)
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self._manifest

    @property
    def method(self) -> Method:
        """The private half."""
        return self._method

    @property
    def handshake_bytes(self) -> tuple[int, int]:
        """Serialised bytes (up, down) of opening the session."""
        return (0, 0) if self._transport is None else self._transport.handshake_bytes

    def predict(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        """Run the model on preprocessed records `[n, channels, height, width]`.

        Raises:
            InputError: the records are not of the declared shape, or not finite.
            CloudError: there is no cloud, or it failed, and the method's private side has no model of its own.
            BudgetExceededError: likewise, and the ledger refuses the release.
        """
        return self._method.infer(x, ids)

    def close(self) -> None:
        """End the session; idempotent."""
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
