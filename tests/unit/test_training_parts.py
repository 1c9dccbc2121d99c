"""The parts of training: the fit, augmentation, and what a configuration refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from delta.errors import ConfigError
from delta.training.checkpoint import CheckpointStore
from delta.training.config import FitConfig, MainConfig, TrainConfig
from delta.training.controls import accuracy, random_bits
from delta.training.fit import augmented, distillation_loss, fit, logits_of
from delta.training.orthogonality import soft_orthogonality, trainable_convolutions
from tests.trained import settings

# Fit


def _fitted(
    records: int, *, batch: int = 8, epochs: int = 2, seed: int = 0
) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, seen = torch.randn(records, 3), []
    y = (x[:, 0] > 0).long()

    def forward(net: nn.Module, index: torch.Tensor) -> torch.Tensor:
        seen.append(index)
        return net(x[index])

    fit(
        model,
        forward,
        lambda logits, index: nn.functional.cross_entropy(logits, y[index]),
        records=records,
        config=FitConfig(epochs=epochs, batch=batch),
        generator=torch.Generator().manual_seed(seed),
    )
    return model, seen


def test_every_epoch_sees_every_record_once_and_a_last_single_one_is_dropped():
    _, seen = _fitted(17)
    assert [len(index) for index in seen] == [8, 8, 8, 8]
    _, seen = _fitted(18)
    assert [len(index) for index in seen] == [8, 8, 2, 8, 8, 2]
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(18))
    assert torch.cat(seen[:3]).tolist() != torch.cat(seen[3:]).tolist()


def test_a_fit_ends_in_eval_mode_and_repeats_itself():
    first, _ = _fitted(20)
    again, _ = _fitted(20)
    other, _ = _fitted(20, seed=1)
    assert not first.training
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_progress_counts_every_step():
    told: list[tuple[str, int, int]] = []
    model = nn.Linear(3, 2)
    fit(
        model,
        lambda net, index: net(torch.ones(len(index), 3)),
        lambda logits, index: logits.square().mean(),
        records=10,
        config=FitConfig(epochs=3, batch=4),
        generator=torch.Generator().manual_seed(0),
        progress=lambda *step: told.append(step),
        stage="a stage",
    )
    assert told == [("a stage", i, 9) for i in range(1, 10)]


def _toy(model: nn.Module, *, value: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> None:
    fit(
        model,
        lambda net, index: net(torch.ones(len(index), 3)),
        lambda logits, index: value(logits),
        records=10,
        config=FitConfig(epochs=3, batch=4),
        generator=torch.Generator().manual_seed(0),
        **options,
    )


def test_a_report_tells_the_mean_loss_at_the_end():
    told: list[tuple[int, int, float]] = []
    _toy(nn.Linear(3, 2), value=lambda z: 0.0 * z.sum() + 5.0, report=lambda *seen: told.append(seen))
    assert told[-1] == (9, 9, 5.0)
    assert len(told) <= 2  # it takes no second


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_fit_and_is_never_stored(tmp_path, spoilt):
    steps: list[int] = []

    def value(logits: torch.Tensor) -> torch.Tensor:
        steps.append(len(steps) + 1)
        return logits.square().mean() * (spoilt if len(steps) == 5 else 1.0)

    store = CheckpointStore(tmp_path, identity="one", every_steps=1)
    with pytest.raises(ConfigError, match="a stage: the loss is not finite at step 5; lower learning_rate"):
        _toy(nn.Linear(3, 2), value=value, checkpoints=store, stage="a stage")
    assert store.latest().step == 4


def test_a_gradient_that_is_not_finite_ends_the_fit_too():
    # √ has an infinite slope at 0, where its value is finite.
    with pytest.raises(ConfigError, match="not finite at step 1"):
        _toy(nn.Linear(3, 2), value=lambda z: (0.0 * z).abs().sqrt().mean())


def test_bfloat16_is_the_forwards_and_float32_the_weights_and_the_losses():
    model, seen = nn.Linear(3, 2), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def value(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits.dtype)
        return logits.square().mean()

    _toy(model, value=value, precision="bfloat16")
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_soft_orthogonality_is_zero_for_orthonormal_filters_alone():
    wide, tall = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 12, 3)
    convolutions = trainable_convolutions(nn.Sequential(wide, tall, nn.Linear(2, 2)))
    assert convolutions == [wide, tall]
    W, V = wide.weight.flatten(1), tall.weight.flatten(1)
    expected = (W @ W.T - torch.eye(4)).square().sum() + (V.T @ V - torch.eye(9)).square().sum()
    torch.testing.assert_close(soft_orthogonality(convolutions), expected)
    for convolution in convolutions:
        nn.init.orthogonal_(convolution.weight)
    assert float(soft_orthogonality(convolutions).detach()) < 1e-9
    wide.requires_grad_(False)
    assert trainable_convolutions(nn.Sequential(wide, tall)) == [tall]


def test_a_fit_with_orthogonality_ends_nearer_to_it():
    def fitted(weight: float) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Unflatten(1, (3, 1, 1)), nn.Conv2d(3, 2, 1), nn.Flatten())
        _toy(model, value=lambda z: z.square().mean(), orthogonality=weight)
        return float(soft_orthogonality(trainable_convolutions(model)).detach())

    assert fitted(1.0) < fitted(0.0)


def test_fewer_records_than_a_batch_are_one_batch():
    _, seen = _fitted(5, batch=64, epochs=1)
    assert [len(index) for index in seen] == [5]


def test_the_distillation_loss_is_the_mean_of_its_two_terms():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, 4, generator=generator)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    hard = nn.functional.cross_entropy(logits, labels)
    p, q = (torch.softmax(z / 2.0, dim=1) for z in (teacher, logits))
    soft = 4.0 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, labels, teacher), 0.3 * hard + 0.7 * soft)
    torch.testing.assert_close(distillation_loss(logits, labels, logits), 0.3 * hard)


def test_logits_come_in_batches_on_the_cpu_and_as_normal_tensors():
    x = torch.randn(7, 3, requires_grad=True)
    found = logits_of(lambda part: 2 * part, x, batch=3)
    torch.testing.assert_close(found, 2 * x.detach())
    assert not found.is_inference()
    assert not found.requires_grad


# Augmentation


@pytest.mark.parametrize("how", ["shift", "shift+flip"])
def test_an_augmented_image_is_a_shift_of_itself_or_of_its_mirror(how):
    x = torch.randn(40, 2, 8, 6, generator=torch.Generator().manual_seed(3))
    found = augmented(x, how, generator=torch.Generator().manual_seed(0), shift=2)
    assert found.shape == x.shape
    mirrored = 0
    for before, after in zip(x, found, strict=True):
        matches = []
        for flipped in (False, True):
            padded = nn.functional.pad(before.flip(2) if flipped else before, (2,) * 4)
            for row in range(5):
                for column in range(5):
                    if torch.equal(padded[:, row : row + 8, column : column + 6], after):
                        matches.append(flipped)
        assert len(matches) == 1
        mirrored += matches[0]
    assert (8 <= mirrored <= 32) if "flip" in how else mirrored == 0  # 40 fair coins: beyond 1 in 10,000


def test_no_augmentation_changes_nothing():
    x = torch.randn(3, 1, 4, 4)
    assert augmented(x, "none", generator=torch.Generator()) is x


# Configuration


def test_noise_has_no_default_and_the_error_says_what_to_choose():
    with pytest.raises(ConfigError, match=r"noise='none' .* noise=\{'epsilon': 8\}"):
        TrainConfig.of({})


def test_all_faults_are_told_at_once_also_beside_a_missing_noise():
    wrong = {"rank": 0, "held_out": 0.9, "colour": "blue", "device": "tpu"}
    for given, words in ((wrong, ["noise is not set"]), ({**wrong, "noise": {"epsilon": -1}}, ["epsilon"])):
        with pytest.raises(ConfigError) as caught:
            TrainConfig.of(given)
        text = str(caught.value)
        assert "\n" not in text
        for word in [*words, "rank", "held_out", "colour", "device"]:
            assert word in text, word


@pytest.mark.parametrize(
    "changes",
    [
        {"noise": {"epsilon": 0}},
        {"noise": {"epsilon": 1, "delta": 1}},
        {"noise": 8},
        {"noise": "some"},
        {"name": "Not A Name"},
        {"alpha_max": 0},
        {"logit_bound": float("inf")},
        {"message": "projection"},
        {"channels": 3},
        {"message": "channel-mean", "channels": 3},
        {"main": {"layout": "authors", "max_macs": 5}},
        {"whole": {"epochs": 0}},
        {"cloud_fit": {"epochs": 1, "batch": 1}},
        {"cloud_fit": {"epochs": 1, "label_smoothing": 0.1}},
    ],
)
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ConfigError, match="training settings: "):
        TrainConfig.of(settings(**changes))


def test_sigma_is_that_of_the_claim():
    config = TrainConfig.of({"noise": {"epsilon": 8}})
    assert config.sigma(clip_norm=1.0) == pytest.approx(1.20, abs=0.005)  # DESIGN, privacy 1
    assert config.sigma(clip_norm=2.0) == pytest.approx(2 * 1.20, abs=0.01)
    assert TrainConfig.of({"noise": "none"}).sigma(clip_norm=1.0) is None


def test_stage_one_does_not_depend_on_what_is_released():
    base = TrainConfig.of(settings())
    for changes in (
        {"noise": {"epsilon": 8}},
        {"name": "other"},
        {"offload": "principal"},
        {"message": "projection", "channels": 2},
        {"cloud_fit": FitConfig(epochs=9)},
        {"fusion": "sum"},
        {"alpha_max": 1.0},
        {"logit_bound": 1.0},
    ):
        assert TrainConfig.of(settings(**changes)).private_settings == base.private_settings
    for changes in (
        {"seed": 1},
        {"rank": 3},
        {"basis": "svd"},
        {"keep": 4},
        {"backbone": "fixed"},
        {"whole": None},
        {"main": MainConfig(max_macs=70_000)},
        {"held_out": 0.2},
        {"augment": "shift"},
    ):
        assert TrainConfig.of(settings(**changes)).private_settings != base.private_settings


# Controls


def test_random_bits_are_fair_and_follow_the_seed():
    bits = random_bits(200, 32, seed=0)
    assert (bits.shape, bits.dtype) == ((200, 32), torch.uint8)
    ones = sum(int(((bits >> i) & 1).sum()) for i in range(8))
    assert abs(ones / (200 * 32 * 8) - 0.5) < 0.01  # more than four standard deviations of 51,200 coins
    assert torch.equal(bits, random_bits(200, 32, seed=0))
    assert not torch.equal(bits, random_bits(200, 32, seed=1))


def test_accuracy_is_in_percent():
    assert accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0])) == 75.0
