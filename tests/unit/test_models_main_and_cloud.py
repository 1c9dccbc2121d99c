from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from delta.errors import ModelError, RequestError
from delta.models.cloud_model import CloudModel
from delta.models.macs import count_macs
from delta.models.main_model import LIGHT_FAMILY, build_main, light_macs
from delta.release.packing import pack_bits


def test_the_authors_layout_counts_what_the_published_one_does() -> None:
    main = build_main(layout="authors", in_channels=64, size=(16, 16), classes=10, rank=8)
    assert round(count_macs(main, torch.zeros(1, 64, 16, 16)) / 1e6, 1) in (85.7, 85.8)
    # By hand, per position: 3×3 to p, 3×3 to 2p, 1×1 to 4p, shortcut where the shape changes.
    p = (16, 64, 128)
    first = 2 * 256 * (9 * 64 * p[0] + 9 * 2 * p[0] ** 2 + 8 * p[0] ** 2)
    second = 256 * 9 * 64 * p[1] + 64 * (18 * p[1] ** 2 + 8 * p[1] ** 2 + 64 * 4 * p[1])
    second += 64 * (36 * p[1] ** 2 + 18 * p[1] ** 2 + 8 * p[1] ** 2)
    third = 64 * 9 * 256 * p[2] + 16 * (18 * p[2] ** 2 + 8 * p[2] ** 2 + 256 * 4 * p[2])
    third += 16 * (36 * p[2] ** 2 + 18 * p[2] ** 2 + 8 * p[2] ** 2)
    assert count_macs(main, torch.zeros(1, 64, 16, 16)) == first + second + third + 512 * 10


def test_without_the_crop_the_authors_layout_has_one_more_stage() -> None:
    cropped = build_main(layout="authors", in_channels=8, size=(16, 16), classes=10, rank=2)
    whole = build_main(layout="authors", in_channels=8, size=(32, 32), classes=10, rank=2, cropped=False)
    assert (len(cropped.stages), len(whole.stages)) == (3, 4)
    assert whole(torch.randn(2, 8, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    "arguments",
    [
        {"layout": "authors", "in_channels": 6, "size": (8, 8), "classes": 4, "rank": 3},
        {"layout": "authors", "in_channels": 6, "size": (16, 8), "classes": 4, "rank": 2, "cropped": False},
        {"layout": "light", "in_channels": 6, "size": (8, 8), "classes": 4, "max_macs": 300_000},
        {"layout": "light", "in_channels": 6, "size": (1, 1), "classes": 4, "max_macs": 300_000},
    ],
)
def test_settings_survive_json_and_build_the_same_model(arguments) -> None:
    main = build_main(**arguments)
    twin = build_main(**json.loads(json.dumps(main.settings)))
    assert twin.settings == main.settings
    twin.load_state_dict(main.state_dict())
    x = torch.randn(2, 6, *arguments["size"])
    torch.testing.assert_close(twin.eval()(x), main.eval()(x))


@pytest.mark.parametrize("budget", [50_000, 900_000, 5_000_000, 28_000_000, 100_000_000])
def test_a_light_model_is_the_largest_within_its_budget(budget: int) -> None:
    shape = {"in_channels": 8, "size": (8, 8) if budget < 100_000 else (16, 16), "classes": 10}
    main = build_main(layout="light", max_macs=budget, **shape)
    own = light_macs(width=main.settings["width"], blocks=main.settings["blocks"], **shape)
    others = [light_macs(width=w, blocks=b, **shape) for w, b in LIGHT_FAMILY]
    assert own <= budget
    assert own == max(macs for macs in others if macs <= budget)
    with torch.device("meta"):
        assert count_macs(main, torch.zeros(1, 8, *shape["size"])) == own
    assert own > budget // 2 or budget == 50_000


def test_the_light_family_covers_small_to_large_budgets() -> None:
    macs = [light_macs(in_channels=8, size=(16, 16), classes=10, width=w, blocks=b) for w, b in LIGHT_FAMILY]
    tiny = light_macs(in_channels=4, size=(8, 8), classes=10, width=2, blocks=1)
    assert tiny < 50_000
    assert max(macs) > 100_000_000
    assert len(set(macs)) == len(macs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layout": "authors"}, "rank"),
        ({"layout": "light"}, "max_macs"),
        ({"layout": "light", "max_macs": 10}, "smallest takes"),
        ({"layout": "heavy"}, "'authors' or 'light'"),
        ({"layout": "light", "max_macs": 10**6, "classes": 0}, "0 classes"),
        ({"layout": "light", "width": 0, "blocks": 1}, "at least 1"),
    ],
)
def test_bad_main_models_are_refused(arguments, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build_main(**{"in_channels": 8, "size": (16, 16), "classes": 10, **arguments})


def body(c: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(c, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("message", "ir"),
    [((1, 8, 8), (6, 8, 8)), ((3, 5, 7), (6, 5, 7)), ((4, 4, 4), (6, 8, 8)), ((2, 3, 3), (6, 7, 6))],
)
def test_packed_bits_and_signs_give_the_same_logits(message, ir) -> None:
    model = CloudModel(body(ir[0]), message_shape=message, ir_shape=ir).eval()
    bits = torch.rand(4, *message) < 0.5
    signs = torch.where(bits, 1.0, -1.0)
    payload = pack_bits(bits)
    assert model.adapter(signs).shape == (4, *ir)
    logits = model(payload)
    assert logits.shape == (4, 3)
    torch.testing.assert_close(logits, model.forward_bits(signs))
    torch.testing.assert_close(model(payload[:1]), logits[:1])


def test_a_payload_of_another_length_is_refused() -> None:
    model = CloudModel(body(6), message_shape=(1, 8, 8), ir_shape=(6, 8, 8))
    with pytest.raises(RequestError):
        model(torch.zeros(2, 7, dtype=torch.uint8))


@pytest.mark.parametrize("message", [(1, 9, 8), (0, 8, 8), (8, 8)])
def test_a_message_that_does_not_fit_is_refused(message) -> None:
    with pytest.raises(ModelError):
        CloudModel(body(6), message_shape=message, ir_shape=(6, 8, 8))


def test_the_adapter_learns_and_the_body_is_the_one_given() -> None:
    inner = body(6)
    model = CloudModel(inner, message_shape=(1, 8, 8), ir_shape=(6, 8, 8))
    assert model.body is inner
    model(torch.randint(0, 256, (4, 8), dtype=torch.uint8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
