"""The jigsaw attack on shuffled releases: put the patches back, then draw the image from what lies in its place.

The attacker knows how layouts are drawn and not the key. It shuffles bits of records of its own, so that it knows
where each patch belongs, and teaches a network to tell place and mirroring of each patch from all of them together.
The places are then shared out by the Hungarian method (Kuhn 1955), each once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta.attacks.decoding import precision_on
from delta.attacks.release_tap import ReleaseTap
from delta.attacks.tap import Tap, generator_on
from delta.errors import ConfigError
from delta.models.bag_model import PatchReader, patch_transformer
from delta.release.config import InputSpec
from delta.release.layout import Arrangement, arranged, cut, join, mirrored, random_arrangement, restored
from delta.training.config import FitConfig
from delta.training.fit import Progress, augmented, fit, placed, quiet

__all__ = ["KEPT", "JigsawNet", "JigsawTap", "Placement", "check_jigsaw", "fit_jigsaw", "shared_out"]

KEPT = "the jigsaw attack puts shuffled patches back, and this bundle keeps its layout; leave jigsaw out"
"""Why it is refused."""
_BATCH = 256
_SHIFT = 2
_LAYERS = 3


class JigsawNet(nn.Module):
    """Where each patch belongs: `[n, patches, k, patch, patch] → [n, patches, places, turns]` logits.

    A turn is one of four mirrorings, left to right + 2·upside down; one alone where patches are not mirrored.

    Args:
        channels: k of a patch.
        patch: its side.
        places: patches of a record.
        mirror: whether they may be mirrored.
        width: of the patches' first convolutions.
    """

    def __init__(self, *, channels: int, patch: int, places: int, mirror: bool, width: int) -> None:
        super().__init__()
        self.places, self.turns = places, 4 if mirror else 1
        self.reader = PatchReader(channels=channels, patch=patch, width=width)
        self.together = patch_transformer(4 * width, layers=_LAYERS)
        self.head = nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, places * self.turns))

    def forward(self, patches: Tensor) -> Tensor:
        """Patches as ±1 in the order sent → logits of their places and turns."""
        n, count = patches.shape[:2]
        tokens = self.reader(patches.flatten(0, 1)).view(n, count, -1)
        logits: Tensor = self.head(self.together(tokens))
        return logits.view(n, count, self.places, self.turns)


@dataclass(frozen=True)
class Placement:
    """How well patches were put back, percent.

    Attributes:
        placed: patches in their place.
        turned: patches in their place and mirrored back. Patches that look alike count as wrong where they are swapped.
        chance: of a place by guessing.
        bits: bits of the map that are right once it is put together.
        bits_before: bits that are right in the order sent.
    """

    placed: float
    turned: float
    chance: float
    bits: float
    bits_before: float


class JigsawTap(Tap):
    """A shuffled release, put together again: the bits in their guessed places, and each place's expectation.

    Args:
        inner: the tap on the release.
        net: trained; in eval mode.
    """

    def __init__(self, inner: ReleaseTap, net: JigsawNet) -> None:
        k, height, width = inner.shape
        self.name, self.shape, self.noisy = inner.name, (2 * k, height, width), inner.noisy
        self._inner, self._net = inner, net

    def simulate(self, x: Tensor, *, looks: int, generator: torch.Generator) -> Tensor:
        """Simulated bits, put together."""
        return self.solved(self._inner.simulate(x, looks=looks, generator=generator))

    def capture(
        self, x: Tensor, ids: Sequence[str], *, looks: int = 1, fresh: bool = True, seed: int = 0
    ) -> Tensor:
        """Real payloads, put together."""
        return self.solved(self._inner.capture(x, ids, looks=looks, fresh=fresh, seed=seed))

    @torch.no_grad()
    def solved(self, observed: Tensor) -> Tensor:
        """Observations of the release `[n, k, h, w]` → `[n, 2k, h, w]`: bits as placed, and their expectation."""
        return torch.cat([self._solve(part)[0] for part in torch.split(observed, _BATCH)])

    @torch.no_grad()
    def placement(self, observed: Tensor, truth: Arrangement) -> Placement:
        """How well observations `[n, k, h, w]` whose arrangement is known are put together."""
        guesses, maps = [], []
        for part in torch.split(observed, _BATCH):
            whole, guess = self._solve(part)
            guesses.append(guess)
            maps.append(whole[:, : part.shape[1]])
        order = torch.cat([guess.order for guess in guesses])
        mirrors = torch.cat([guess.mirrors for guess in guesses])
        truth, patch = truth.to(observed.device), self._patch
        right = order == truth.order
        own = join(restored(cut(observed, patch), truth), self._inner.shape[1:])
        return Placement(
            placed=_percent(right),
            turned=_percent(right & (mirrors == truth.mirrors).all(2)),
            chance=100.0 / order.shape[1],
            bits=_percent(torch.cat(maps) == own),
            bits_before=_percent(observed == own),
        )

    @property
    def _patch(self) -> int:
        if self._inner.patch is None:
            raise ConfigError(KEPT)
        return self._inner.patch

    def _solve(self, observed: Tensor) -> tuple[Tensor, Arrangement]:
        patches, size = cut(observed, self._patch), (observed.shape[2], observed.shape[3])
        with precision_on(observed.device):
            logits = self._net(patches).float()
        logs = logits.flatten(2).log_softmax(2).view_as(logits)
        best, turn = logs.max(3)  # [n, patches, places]
        order = shared_out(best)
        turns = turn.gather(2, order[:, :, None])[:, :, 0]
        guess = Arrangement(order, torch.stack([turns % 2 == 1, turns >= 2], dim=2))
        return torch.cat(
            [join(restored(patches, guess), size), join(_expected(patches, logs), size)], 1
        ), guess


def shared_out(scores: Tensor) -> Tensor:
    """The assignment of places to patches with the largest sum of scores, each place once.

    Args:
        scores: of a patch at a place, `[n, patches, places]`.

    Returns:
        The place of each patch, `[n, patches]` int64 on the scores' device.

    Raises:
        ConfigError: scipy is not installed.
    """
    assign = check_jigsaw()
    found = [torch.from_numpy(assign(one, maximize=True)[1]) for one in scores.double().cpu().numpy()]
    return torch.stack(found).to(scores.device)


def check_jigsaw() -> Any:  # noqa: ANN401
    """The Hungarian method, before any work is done.

    Raises:
        ConfigError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError:
        raise ConfigError(
            "the jigsaw attack needs the package 'scipy'; install delta-split[attacks]"
        ) from None
    return linear_sum_assignment


def fit_jigsaw(
    tap: ReleaseTap,
    images: Tensor,
    input: InputSpec,
    *,
    epochs: int,
    width: int = 32,
    batch: int = 128,
    seed: int = 0,
    progress: Progress = quiet,
    stage: str = "jigsaw",
) -> tuple[JigsawTap, dict[str, float]]:
    """Teach a network where patches belong, on the attacker's own records, shuffled anew in every step.

    Args:
        tap: on a shuffled release.
        images: the attacker's own, `[n, c, h, w]` in [0, 1], on the device where everything runs.
        input: preprocessing.
        epochs: passes.
        width: of the patches' first convolutions.
        batch: records a step.
        seed: of weights, order, augmentation, noise and layouts.
        progress: told after every step.
        stage: the name it is told.

    Returns:
        The tap that puts releases together, and what the training took.

    Raises:
        ConfigError: the layout is kept, scipy is not installed, or the training failed.
    """
    check_jigsaw()
    started, patch, layout = time.perf_counter(), tap.patch, tap.release.layout
    if patch is None:
        raise ConfigError(KEPT)
    device, places = images.device, tap.release.patches
    noise, generator = generator_on(device, seed + 1), torch.Generator().manual_seed(seed)
    how = "shift+flip" if images.shape[1] == 3 else "shift"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = JigsawNet(channels=tap.shape[0], patch=patch, places=places, mirror=layout.mirror, width=width)
    placed(net, device)
    asked: list[Tensor] = []

    def forward(model: nn.Module, index: Tensor) -> Tensor:
        some = augmented(images[index.to(device)], how, generator=generator, shift=_SHIFT)
        bits = tap.kept(tap.messages(input.preprocess(some)), generator=noise)
        order = random_arrangement(
            len(some), patches=places, mirror=layout.mirror, generator=noise, device=device
        )
        turns = order.mirrors[:, :, 0] + 2 * order.mirrors[:, :, 1].long()
        asked[:] = [(order.order * net.turns + turns).flatten()]
        logits: Tensor = model(arranged(cut(bits, patch), order))
        return logits.flatten(2).flatten(0, 1)

    fit(
        net,
        forward,
        lambda logits, _: nn.functional.cross_entropy(logits, asked[0]),
        records=len(images),
        config=FitConfig(epochs=epochs, batch=batch, learning_rate=2e-3),
        generator=generator,
        progress=progress,
        stage=stage,
        precision="bfloat16" if device.type == "cuda" else "float32",
    )
    net.requires_grad_(False)
    effort = {
        "epochs": float(epochs),
        "records": float(len(images)),
        "parameters": float(sum(p.numel() for p in net.parameters())),
        "seconds": time.perf_counter() - started,
    }
    return JigsawTap(tap, net), effort


def _expected(patches: Tensor, logs: Tensor) -> Tensor:
    """What lies at each place on average, `[n, places, k, patch, patch]`, under independent guesses `logs`."""
    chance = logs.exp()  # [n, patches, places, turns]
    total = torch.zeros_like(patches)
    for turn in range(logs.shape[3]):
        sides = torch.tensor([turn % 2 == 1, turn >= 2], device=patches.device).expand(*patches.shape[:2], 2)
        turned = mirrored(patches, sides).flatten(2)
        total += (chance[..., turn].mT @ turned).view_as(patches)
    weight = chance.sum(dim=(1, 3)).clamp_min(1e-6)
    return total / weight[:, :, None, None, None]


def _percent(right: Tensor) -> float:
    return 100.0 * float(right.double().mean())
