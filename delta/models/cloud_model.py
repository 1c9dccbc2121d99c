"""The public side's large model M_res: an adapter from released bits to the IR's shape, then the body.

Of a shuffled release there is no map to adapt: its body reads the bag of patches itself.
"""

from __future__ import annotations

from torch import Tensor, nn

from delta.errors import ModelError
from delta.models.resnet import initialise
from delta.release.layout import cut, unpack_patches
from delta.release.packing import unpack_bits

__all__ = ["Adapter", "CloudModel"]


class Adapter(nn.Module):
    """A 3×3 convolution, batch normalisation and ReLU; nearest upsampling where the message is smaller.

    Shapes: `[n, k, h_m, w_m] → [n, c, h, w]`.
    """

    def __init__(self, *, message_shape: tuple[int, int, int], ir_shape: tuple[int, int, int]) -> None:
        super().__init__()
        (k, *size), (c, *ir_size) = message_shape, ir_shape
        self.conv = nn.Conv2d(k, c, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(c)
        self.act = nn.ReLU()
        # After the convolution, which then runs on the fewer values.
        self.upsample: nn.Module = nn.Identity() if size == ir_size else nn.Upsample(size=tuple(ir_size))
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Bits as ±1 `[n, k, h_m, w_m]` → `[n, c, h, w]`."""
        out: Tensor = self.upsample(self.act(self.bn(self.conv(x))))
        return out


class CloudModel(nn.Module):
    """M_res: packed bits in, logits out; while it trains, bits as ±1 too."""

    def __init__(
        self,
        body: nn.Module,
        *,
        message_shape: tuple[int, int, int],
        ir_shape: tuple[int, int, int],
        patch: int | None = None,
    ) -> None:
        """The adapter is new; the body is used as it is.

        Args:
            body: IR `[n, c, h, w]` → logits `[n, classes]`; of a shuffled release, patches as ±1
                `[n, patches, k, patch, patch]` → logits.
            message_shape: `(k, h_m, w_m)` of a release.
            ir_shape: `(c, h, w)` that the body takes where the layout is kept.
            patch: side of a shuffled release's patches; none where the layout is kept.

        Raises:
            ModelError: a size is below 1, or the message is larger than the IR.
        """
        super().__init__()
        message_shape, ir_shape = _shape(message_shape), _shape(ir_shape)
        if min(*message_shape, *ir_shape) < 1 or any(
            m > i for m, i in zip(message_shape[1:], ir_shape[1:], strict=True)
        ):
            raise ModelError(
                f"a message of shape {message_shape} does not fit an IR of shape {ir_shape}: "
                "it must not be larger"
            )
        self.message_shape, self.patch = message_shape, patch
        self.adapter: nn.Module = nn.Identity()
        if patch is None:
            self.adapter = Adapter(message_shape=message_shape, ir_shape=ir_shape)
        self.body = body

    def forward(self, payload: Tensor) -> Tensor:
        """Packed bits, uint8 `[n, B]` with B = ⌈k·h_m·w_m/8⌉ → logits `[n, classes]`.

        Floating bits as ±1, `[n, k, h_m, w_m]`, are taken as they are: augmented views have zeros among them. The
        patches of a shuffled release lie in them row by row, in any order.
        """
        if payload.is_floating_point():
            return self.forward_bits(payload)
        if self.patch is None:
            bits = unpack_bits(payload, self.message_shape)
        else:
            bits = unpack_patches(payload, self.message_shape, patch=self.patch)
        return self.forward_bits(bits.to(next(self.parameters()).dtype).mul_(2).sub_(1))

    def forward_bits(self, bits: Tensor) -> Tensor:
        """Bits as ±1, floating `[n, k, h_m, w_m]` → logits `[n, classes]`."""
        logits: Tensor = self.body(self.adapter(bits) if self.patch is None else cut(bits, self.patch))
        return logits


def _shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ModelError(f"a shape needs three sizes (channels, height, width), got {tuple(shape)}")
    c, h, w = shape
    return int(c), int(h), int(w)
