"""The parts of training: the fit, augmentation, the cache, and what a configuration refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from delta.errors import ConfigError, InputError
from delta.training.cache import WeightCache
from delta.training.config import FitConfig, MainConfig, TrainConfig
from delta.training.controls import accuracy, random_bits
from delta.training.fit import augmented, distillation_loss, fit, logits_of
from tests.trained import settings

# Fit


def _fitted(
    records: int, *, batch: int = 8, epochs: int = 2, seed: int = 0
) -> tuple[nn.Module, list[torch.Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, seen = torch.randn(records, 3), []
    y = (x[:, 0] > 0).long()

    def forward(index: torch.Tensor) -> torch.Tensor:
        seen.append(index)
        return model(x[index])

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
        lambda index: model(torch.ones(len(index), 3)),
        lambda logits, index: logits.square().mean(),
        records=10,
        config=FitConfig(epochs=3, batch=4),
        generator=torch.Generator().manual_seed(0),
        progress=lambda *step: told.append(step),
        stage="a stage",
    )
    assert told == [("a stage", i, 9) for i in range(1, 10)]


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


# Cache


def _module(seed: int, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


def _same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_kept_weights_come_back(tmp_path):
    cache = WeightCache(tmp_path / "deep" / "cache", {"data": "x"})
    cache.keep("main", {"epochs": 1}, _module(0))
    module = _module(1)
    assert WeightCache(tmp_path / "deep" / "cache", {"data": "x"}).restore("main", {"epochs": 1}, module)
    assert _same(module, _module(0))


@pytest.mark.parametrize(
    ("context", "name", "chosen"),
    [
        ({"data": "y"}, "main", {"epochs": 1}),
        ({"data": "x"}, "whole", {"epochs": 1}),
        ({"data": "x"}, "main", {}),
    ],
)
def test_another_context_name_or_setting_is_another_file(tmp_path, context, name, chosen):
    WeightCache(tmp_path, {"data": "x"}).keep("main", {"epochs": 1}, _module(0))
    module = _module(1)
    assert not WeightCache(tmp_path, context).restore(name, chosen, module)
    assert _same(module, _module(1))


def _flip(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


@pytest.mark.parametrize("damage", [lambda d: d[:-5], lambda d: b"", lambda d: d + b"x", _flip])
def test_a_damaged_file_is_no_file(tmp_path, damage):
    cache = WeightCache(tmp_path, {})
    cache.keep("main", {}, _module(0))
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    module = _module(1)
    assert not cache.restore("main", {}, module)
    assert _same(module, _module(1))
    cache.keep("main", {}, _module(0))
    assert cache.restore("main", {}, module)


def test_weights_that_do_not_fit_touch_nothing(tmp_path):
    cache = WeightCache(tmp_path, {})
    cache.keep("main", {}, _module(0))
    wider = _module(1, width=4)
    assert not cache.restore("main", {}, wider)
    assert _same(wider, _module(1, width=4))


def test_a_cache_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        WeightCache(tmp_path / "file" / "cache", {}).keep("main", {}, _module(0))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_kept_file_stands_alone(tmp_path: Path):
    cache = WeightCache(tmp_path, {})
    cache.keep("main", {}, _module(0))
    cache.keep("main", {}, _module(1))
    assert len(list(tmp_path.iterdir())) == 1


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
