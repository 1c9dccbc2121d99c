"""Learned message maps: what the fit minimises, what it is for, what it leaves, and how it goes on after a cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from delta.attacks.metrics import ssim
from delta.bundle.store import weights_hash
from delta.errors import ConfigError
from delta.methods.delta.parts import load_private_parts
from delta.models.unet import UNet
from delta.privacy.claim import claim_of
from delta.release.components import component_hash
from delta.release.config import Bounding
from delta.release.noise import NoiseKey
from delta.training.api import lineage_of
from delta.training.assemble import assemble_bundle
from delta.training.checkpoint import FitStore
from delta.training.cloud_stage import train_cloud_stage
from delta.training.config import FitConfig, LearnedMessage, TrainConfig
from delta.training.fit import fit
from delta.training.message_fit import MessageGame, drawing_losses, learned_map, release_bits
from delta.training.private_stage import PrivateStage, train_private_stage
from delta.training.release_stage import build_release
from delta.training.report import message_figures, message_text
from tests.trained import settings, small_parts

QUICK = {"map": "learned", "k": 3, "stride": 2, "epochs": 1, "width": 4}


def learned(**changes: object) -> TrainConfig:
    return TrainConfig.of(settings(backbone="fixed", message=QUICK, **changes))


# What is minimised


@pytest.mark.parametrize("sigma", [None, 0.05])
@pytest.mark.parametrize("bounding", [Bounding(), Bounding(kind="clip", clip_norm=2.0)])
def test_bits_are_the_mechanisms_and_their_gradient_that_of_the_expectation(sigma, bounding):
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(m.shape, generator=generator, dtype=torch.float64)

    def expectation(values: Tensor) -> Tensor:
        if sigma is None:
            return 2 * torch.special.ndtr(values * 4 / values.flatten(2).norm(dim=2)[..., None, None]) - 1
        norm = values.flatten(1).norm(dim=1)[:, None, None, None]
        scale = bounding.clip_norm / norm
        scale = scale if bounding.kind == "normalise" else scale.clamp(max=1)
        return 2 * torch.special.ndtr(values * scale / sigma) - 1

    torch.manual_seed(0)
    bits = release_bits(m, sigma=sigma, bounding=bounding)
    assert bool((bits.abs() - 1 < 1e-12).all())
    if sigma is None:
        torch.testing.assert_close(bits.detach(), (m >= 0).double() * 2 - 1)
    (found,) = torch.autograd.grad((bits * weight).sum(), m)
    (wanted,) = torch.autograd.grad((expectation(m) * weight).sum(), m)
    torch.testing.assert_close(found, wanted)
    if sigma is not None:
        many = m.detach()[:1].expand(4000, -1, -1, -1)
        mean = release_bits(many, sigma=sigma, bounding=bounding).mean(0)
        assert float((mean - expectation(m.detach()[:1])[0]).abs().max()) < 5 / 4000**0.5


def game(*, adversary: float, mean: Tensor | None = None, **changes: int) -> MessageGame:
    wanted = {"k": 2, "stride": 1, "width": 4, **changes}
    torch.manual_seed(3)
    return MessageGame(
        channels=2,
        size=(8, 8),
        settings=LearnedMessage(map="learned", adversary=adversary, **wanted),
        classes=2,
        classifier_macs=0,
        mean=torch.full((2, 8, 8), 0.5) if mean is None else mean,
        sigma=None,
        bounding=Bounding(),
    )


def test_the_decoders_gradient_reaches_the_map_reversed_weighted_and_only_while_it_draws():
    """Against the two losses differentiated apart; a decoder that is worse than the blank picture is not heard."""
    stream = torch.randn(6, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    images = torch.rand(6, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    heard = []
    for adversary in (0.5, 2.0):
        trio = game(adversary=adversary).eval()  # batch statistics would mix the records
        nn.init.normal_(trio.decoder.leave.weight, std=0.5)
        _, both = trio(stream, images)
        found = torch.autograd.grad(both.mean(), [trio.raw, trio.decoder.leave.weight, trio.blank])
        bits = trio.bits(stream)
        drawn = drawing_losses(trio.decoder(bits), images)
        blank = drawing_losses(torch.sigmoid(trio.blank).expand_as(images), images)
        counts = (drawn < blank).detach()
        own = torch.autograd.grad(drawn.mean(), trio.decoder.leave.weight, retain_graph=True)[0]
        reversed_ = torch.autograd.grad((drawn * counts).mean(), trio.raw)[0] * -adversary
        torch.testing.assert_close(found[0], reversed_)
        torch.testing.assert_close(found[1], own)
        torch.testing.assert_close(found[2], torch.autograd.grad(blank.mean(), trio.blank)[0])
        heard.append(int(counts.sum()))
    assert 0 < heard[0] < 6  # both kinds of record are among them
    quiet = game(adversary=0.0)
    logits, nothing = quiet(stream, images)
    assert not nothing.any()
    assert torch.autograd.grad(logits.sum(), quiet.raw)[0].any()


# What it is for


def toy(records: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Streams of two channels, a picture that tells no class and ±class under noise; the pictures; the classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (records,), generator=generator)
    blobs = torch.rand(records, 1, 3, 3, generator=generator)
    pictures = nn.functional.interpolate(blobs, size=8, mode="bilinear")
    plate = (0.8 * (2 * y - 1))[:, None, None, None] + 0.4 * torch.randn(
        records, 1, 8, 8, generator=generator
    )
    return torch.cat([4 * pictures - 2, plate], dim=1), pictures, y


def trained_on(
    model: nn.Module,
    records: int,
    forward: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]],
    **plan: float,
) -> None:
    """Fit a model to a loss that its forward gives beside its answer."""
    latest: list[Tensor] = []

    def answer(net: nn.Module, index: Tensor) -> Tensor:
        found, loss = forward(net, index)
        latest[:] = [loss]
        return found

    generator = torch.Generator().manual_seed(0)
    fit(
        model,
        answer,
        lambda _, index: latest[0],
        records=records,
        config=FitConfig(batch=64, **plan),
        generator=generator,
    )


def test_an_adversary_makes_the_map_drop_the_picture_and_keep_the_class():
    """A decoder trained afresh on the bits draws worse, far beyond chance; the class is as clear as before."""
    stream, pictures, y = toy(512, seed=0)
    test, originals, truth = toy(256, seed=1)
    mean = pictures.mean(0)
    scores, right = {}, {}
    for adversary in (0.0, 1.0):
        trio = game(adversary=adversary, mean=mean)
        with torch.no_grad():  # each channel starts as half picture and half class
            trio.raw.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))

        def play(net: nn.Module, index: Tensor) -> tuple[Tensor, Tensor]:
            logits, drawn = net(stream[index], pictures[index])
            return logits, nn.functional.cross_entropy(logits, y[index]) + drawn.mean()

        trained_on(trio, len(y), play, epochs=8, learning_rate=0.02)
        with torch.no_grad():
            bits, seen = trio.bits(stream), trio.bits(test)
            right[adversary] = float((trio.classifier(seen).argmax(1) == truth).float().mean())
        torch.manual_seed(0)
        decoder = UNet((2, 8, 8), mean=mean, width=8)

        def copy(net: nn.Module, index: Tensor, bits: Tensor = bits) -> tuple[Tensor, Tensor]:
            drawn = net(bits[index])
            return drawn.flatten(1), drawing_losses(drawn, pictures[index]).mean()

        trained_on(decoder, len(y), copy, epochs=6, learning_rate=2e-3)
        with torch.no_grad():
            scores[adversary] = ssim(originals, decoder(seen))
    gap = scores[0.0] - scores[1.0]
    assert float(gap.mean()) > 10 * float(gap.std()) / 256**0.5  # paired, ten standard errors
    assert float(scores[0.0].mean()) > 0.6
    assert float(scores[1.0].mean()) < 0.3
    assert min(right.values()) > 0.95


# What it leaves


@pytest.fixture(scope="module")
def stage(digits) -> PrivateStage:
    return train_private_stage(small_parts(), digits.train, learned(noise={"epsilon": 8}))


def test_the_map_is_in_the_release_by_hash_and_private_whatever_the_backbone(stage, digits):
    config = learned(noise={"epsilon": 8})
    assert stage.message is not None
    assert stage.message.kind == "learned"
    assert not stage.message.matrix.isnan().any()
    assert float(stage.message.matrix.square().sum()) == pytest.approx(3)  # the scale of orthonormal rows
    release, parts = build_release(stage, config)
    assert release.message.shape == (3, 8, 8)
    assert release.message_stride == 2
    assert release.message.component.hash == component_hash(stage.message.state_dict())
    assert release.provenances["backbone"].kind == "data-independent"
    assert release.provenances["message map"].kind == "private"
    assert message_text(release) == "learned 3×8×8, stride 2; private"
    note = message_figures(release)["provenance"]["note"]
    assert note == "fitted on the training records against a decoder of weight 1, frozen before any release"
    assert message_figures(release)["stride"] == 2
    other = stage.message.matrix.clone()
    other[0, 0] += 1e-3
    moved = learned_map(config, stage.split, matrix=other)
    changed = release.message.model_copy(
        update={"component": release.message.component.model_copy(
            update={"hash": component_hash(moved.state_dict())}
        )}
    )  # fmt: skip
    assert release.model_copy(update={"message": changed}).release_hash != release.release_hash
    cloud = train_cloud_stage(stage, config, key=NoiseKey(bytes(32)))
    bundle = assemble_bundle(
        stage, cloud, config, class_names=digits.train.class_names,
        lineage=lineage_of(config, digits.train), figures={},
    )  # fmt: skip
    again = load_private_parts(bundle).message
    assert torch.equal(again.matrix, parts.message.matrix)
    assert (again.kind, again.k, again.stride) == ("learned", 3, 2)
    assert bundle.manifest.release_hash == release.release_hash


def test_a_claim_that_rests_on_a_learned_map_leaves_its_people_out(stage):
    release, _ = build_release(stage, learned(noise={"epsilon": 8}))
    claim = claim_of(release)
    assert claim.claim.endswith(", for people with no record in the private fit of message map")
    line = "message map fitted on private data: for people with a record in that fit, no claim"
    assert line in claim.conditions


def test_a_map_that_stage_one_did_not_learn_is_no_other(stage, trained):
    with pytest.raises(ConfigError, match="stage 1 has not learned this message map"):
        build_release(trained.private, learned())
    other = learned().model_copy(update={"message": LearnedMessage(**{**QUICK, "stride": 1})})
    with pytest.raises(ConfigError, match="stage 1 has not learned this message map"):
        build_release(stage, other)
    fixed, _ = build_release(stage, TrainConfig.of(settings(backbone="fixed")))
    assert fixed.message.map == "channel-mean"
    assert fixed.provenances["message map"].kind == "data-independent"


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({**QUICK, "stride": 3}, "stride must divide the offloaded stream's 16×16, got 3; the nearest is 2"),
        ({**QUICK, "k": 100}, "needs 1 ≤ k ≤ 32: 8 channels, stride 2; got 100; the nearest is 32"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_before_the_first_step(digits, message, words):
    steps: list[str] = []
    with pytest.raises(ConfigError, match=words):
        train_private_stage(
            small_parts(),
            digits.train,
            TrainConfig.of(settings(message=message)),
            progress=lambda stage, done, total: steps.append(stage),
        )
    assert steps == []


def test_interactive_training_moves_the_main_model_and_leaves_the_map(stage):
    config = learned(noise={"epsilon": 8}, mode="interactive")
    _, before = build_release(stage, config)
    after = train_cloud_stage(stage, config, key=NoiseKey(bytes(32)))
    assert torch.equal(after.private.message.matrix, before.message.matrix)
    assert after.release == build_release(stage, learned(noise={"epsilon": 8}))[0]
    assert weights_hash(after.private.main.state_dict()) != weights_hash(stage.main.state_dict())


# Settings


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("learnt", "unknown message map; use channel-mean, projection, all-channels or learned"),
        ({"map": "projection", "k": 3}, "only map: learned has settings of its own"),
        ({"k": 3}, "only map: learned has settings of its own"),
        ({"map": "learned", "k": 0}, "greater than or equal to 1"),
        ({"map": "learned", "adversary": -1}, "greater than or equal to 0"),
        ({"map": "learned", "lambda": 1}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_make_no_sense_are_refused(message, words):
    with pytest.raises(ConfigError, match=words):
        TrainConfig.of(settings(message=message))
    with pytest.raises(ConfigError, match=r"k of a learned one is message\.k"):
        TrainConfig.of(settings(message="learned", channels=3))


def test_a_word_is_enough():
    assert TrainConfig.of(settings(message="learned")).message == LearnedMessage(map="learned")
    assert TrainConfig.of(settings(message={"map": "channel-mean"})).message == "channel-mean"


# Cut and resumed


class _CutError(Exception):
    pass


def _cut_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("message map", step):
            raise _CutError

    return progress


def _never(stage: str, done: int, total: int) -> None:
    raise AssertionError(stage)


def test_a_fit_that_was_cut_ends_with_the_same_map_and_a_finished_one_is_taken(stage, digits, tmp_path):
    """With noise in the loop and augmented images: everything random must go on where it was."""
    config, data = learned(noise={"epsilon": 8}, augment="shift+flip"), digits.train.limited(240, seed=0)
    undisturbed = train_private_stage(small_parts(), data, config).message
    assert undisturbed is not None
    assert stage.message is not None
    assert not torch.equal(undisturbed.matrix, stage.message.matrix)
    for step in (1, 2):
        store = FitStore(tmp_path, "one", every_steps=1)
        with pytest.raises(_CutError):
            train_private_stage(small_parts(), data, config, store=store, progress=_cut_at(step))
    store = FitStore(tmp_path, "one", every_steps=1)
    resumed = train_private_stage(small_parts(), data, config, store=store).message
    assert resumed is not None
    assert weights_hash(resumed.state_dict()) == weights_hash(undisturbed.state_dict())
    store = FitStore(tmp_path, "one")
    again = train_private_stage(small_parts(), data, config, store=store, progress=_never).message
    assert again is not None
    assert torch.equal(again.matrix, resumed.matrix)
    assert list(store.taken) == ["whole", "main", "message"]
