"""The private side of every linear layer: blind, ask, verify, unblind; or compute the same integers here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from delta.errors import CloudError, ModelError
from delta.methods.asking import Call
from delta.methods.slalom.blinding import blind, unblind
from delta.methods.slalom.cloud import operation_name
from delta.methods.slalom.pads import Pads
from delta.methods.slalom.quantise import QuantLayer
from delta.methods.slalom.spec import exact_product
from delta.methods.slalom.stream import SecretStream
from delta.methods.slalom.verify import Challenge, Verifier, verification_macs

__all__ = ["Pass", "Runner"]


@dataclass
class Pass:
    """One batch on its way through the model.

    Attributes:
        call: its dealings with the cloud; none: no cloud.
        macs: of linear layers that this side has executed, a record.
        failure: of the cloud; from then on the layers are computed here.
    """

    call: Call | None
    macs: int = 0
    failure: CloudError | None = None


class Runner:
    """Runs linear layers of a model, for one batch at a time.

    Args:
        layers: in order.
        pads: of the layers.
        repetitions: of the verification.
    """

    def __init__(self, layers: Sequence[QuantLayer], pads: Pads, *, repetitions: int) -> None:
        self._layers, self._pads, self._repetitions = tuple(layers), pads, repetitions
        self._verifiers: list[Verifier] = []
        self.current = Pass(None)

    def modules(self) -> dict[str, nn.Module]:
        """What stands for each layer in the model, by the layer's name."""
        return {layer.spec.name: _Layer(self, index) for index, layer in enumerate(self._layers)}

    def draw(self) -> None:
        """Draw the secrets of the verification anew."""
        stream = SecretStream()
        with torch.inference_mode():
            self._verifiers = [
                Verifier(layer, stream, repetitions=self._repetitions) for layer in self._layers
            ]

    def run(self, index: int, x: Tensor) -> Tensor:
        """A layer's output, `[n, *output_shape]` float32, for its input `[n, *input_shape]`.

        Raises:
            ModelError: the input has another shape than when the bundle was made.
        """
        layer = self._layers[index]
        spec, current = layer.spec, self.current
        if tuple(x.shape[1:]) != spec.input_shape:
            raise ModelError(
                f"layer {spec.name!r} gets {list(x.shape[1:])} a record and was made for "
                f"{list(spec.input_shape)}; the model's shapes must not depend on its records"
            )
        flat = x.to(torch.float32).reshape(len(x), spec.inputs)
        y: Tensor | None = None
        if current.call is not None and current.failure is None:
            try:
                y = self._asked(index, flat, current.call)
                current.macs += verification_macs(spec, repetitions=self._repetitions, records=len(x))
            except CloudError as error:
                current.failure = error
        if y is None:
            y = self._own(layer, flat)
            current.macs += spec.macs
        return y.view(len(x), *spec.output_shape)

    def _asked(self, index: int, x: Tensor, call: Call) -> Tensor:
        layer, verifier = self._layers[index], self._verifiers[index]
        spec = layer.spec
        pad = self._pads.take(index, len(x))
        sent = blind(layer, x, pad)
        challenges: list[Challenge] = []
        answer = call.ask_records(
            operation_name(index),
            sent.view(len(x), *spec.input_shape),
            output="y",
            shape=spec.output_shape,
            dtype=torch.int32,
            meanwhile=lambda: challenges.append(verifier.challenge(sent)),
        ).reshape(len(x), spec.outputs)
        verifier.check(challenges[0], answer)
        return unblind(layer, answer, pad)

    def _own(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """The same integers without a cloud, so the same output bit for bit."""
        spec = layer.spec
        integers = layer.quantise(x).view(len(x), *spec.input_shape)
        return layer.dequantise_(exact_product(spec, layer.integers, integers).float().view(len(x), -1))


class _Layer(nn.Module):
    """Stands for one layer in the model."""

    def __init__(self, runner: Runner, index: int) -> None:
        super().__init__()
        self._runner, self._index = runner, index

    def forward(self, x: Tensor) -> Tensor:
        """`[n, *input_shape]` → `[n, *output_shape]`."""
        return self._runner.run(self._index, x)
