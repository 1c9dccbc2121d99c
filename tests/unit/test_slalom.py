"""Slalom as a whole: bit-exact against plain integers, accurate, and honest about what it costs."""

from __future__ import annotations

import ast
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import delta.methods.slalom as slalom_package
from delta.bundle.store import export_cloud_part, load_bundle, load_cloud_part, save_bundle
from delta.data.embedded import load_embedded
from delta.errors import BundleError, ConfigError, ModelError, TrainingUnsupportedError
from delta.methods.slalom import Slalom, reference
from delta.methods.slalom import runner as runner_module
from delta.methods.slalom.contents import layers_of, settings_of
from delta.methods.slalom.field import PRIME, half_of
from delta.methods.whole import WholeModel
from delta.training.conversion import Conversion, convert
from delta.training.private_stage import input_spec
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded
from tests.slalom_models import SHAPE, records, spec_of, zoo

CPU = torch.device("cpu")


def half_of_bundle(bundle):
    return Slalom.cloud_half(bundle.cloud_part, device=CPU)


@pytest.fixture(scope="module")
def zoo_bundle():
    return Slalom.bundle_of(zoo())


@pytest.fixture(scope="module")
def tiny(trained):
    return Slalom.bundle_of(trained.whole)


def _inferred(bundle, x, **options):
    method = Slalom.from_bundle(bundle, **options)
    with InProcessTransport(half_of_bundle(bundle)) as transport:
        method.prepare(transport)
        return method.infer(x)


def _expected(bundle, x):
    with torch.inference_mode():
        return reference(bundle)(x)


@pytest.mark.parametrize("scale", [1.0, 30.0, -1e30, 0.0])
def test_every_kind_of_layer_equals_plain_int64_bit_for_bit(zoo_bundle, scale):
    x = records(5) * scale
    prediction = _inferred(zoo_bundle, x)
    assert prediction.used_cloud
    assert torch.equal(prediction.logits, _expected(zoo_bundle, x))


def test_the_zoo_is_near_its_float_model(zoo_bundle):
    x = records(20)
    with torch.inference_mode():
        logits = zoo().module(x)
    torch.testing.assert_close(_expected(zoo_bundle, x), logits, atol=0.02, rtol=0)


def test_a_trained_model_is_exact_and_within_a_point_of_float(tiny, trained):
    prediction = _inferred(tiny, trained.x, pads=100)
    assert prediction.used_cloud
    assert torch.equal(prediction.logits, _expected(tiny, trained.x))
    with torch.inference_mode():
        logits = trained.whole.module(trained.x)
    accuracy, plain = (
        100 * float((z.argmax(dim=1) == trained.test.y).double().mean()) for z in (prediction.logits, logits)
    )
    assert plain > 40
    assert abs(accuracy - plain) <= 1.0


@pytest.mark.slow
def test_resnet18_is_exact():
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole = WholeModel.build("resnet18", input=spec_of((3, 32, 32)), arguments={"classes": 10}, calibration=x)
    bundle = Slalom.bundle_of(whole)
    assert torch.equal(_inferred(bundle, x).logits, _expected(bundle, x))


def test_without_a_cloud_the_integers_are_the_same(zoo_bundle):
    method = Slalom.from_bundle(zoo_bundle)
    method.prepare(None)
    prediction = method.infer(records(3))
    assert prediction.reason == "no-cloud"
    assert torch.equal(prediction.logits, _expected(zoo_bundle, records(3)))
    assert prediction.cost.private_macs == zoo().macs


def test_a_saved_bundle_is_the_same(zoo_bundle, tmp_path):
    folder = save_bundle(zoo_bundle, tmp_path / "bundle")
    loaded = load_bundle(folder)
    part = load_cloud_part(export_cloud_part(zoo_bundle.cloud_part, tmp_path / "cloud"))
    method = Slalom.from_bundle(loaded, allow={zoo_bundle.manifest.architecture.target})
    with InProcessTransport(Slalom.cloud_half(part, device=CPU)) as transport:
        method.prepare(transport)
        assert torch.equal(method.infer(records(2)).logits, _expected(zoo_bundle, records(2)))


def test_what_it_costs(zoo_bundle):
    layers = settings_of(zoo_bundle.manifest).layers
    fresh = _inferred(zoo_bundle, records(4))
    assert fresh.cost.round_trips == len(layers)
    assert fresh.cost.cloud_macs == fresh.extras["precompute_macs"] == zoo().macs
    one, many = _inferred(zoo_bundle, records(1)), _inferred(zoo_bundle, records(64))
    assert one.cost.private_macs == zoo_bundle.facts.private_macs
    # Of a batch, the one-channel convolution runs once: what is left are two sums a repetition.
    sums = 2 * sum(layer.inputs + layer.outputs for layer in layers)
    assert sums < many.cost.private_macs < one.cost.private_macs
    assert fresh.extras["pad_bytes"] == 2 * sums
    values = max(layer.inputs + layer.outputs for layer in layers)
    assert zoo_bundle.facts.peak_private_bytes > fresh.extras["pad_bytes"] + 4 * values


def test_precomputation_is_reported_apart(zoo_bundle):
    started = time.perf_counter()
    on_demand = _inferred(zoo_bundle, records(64))
    elapsed_ms = 1e3 * (time.perf_counter() - started)
    assert on_demand.extras["precompute_ms"] > 0
    assert on_demand.cost.wall_ms + on_demand.extras["precompute_ms"] <= elapsed_ms
    ahead = _inferred(zoo_bundle, records(64), pads=70)
    assert ahead.extras["precompute_ms"] < on_demand.extras["precompute_ms"]
    assert ahead.extras["pads_left"] == 6
    assert on_demand.extras["pads_left"] == 0


def test_pads_made_ahead_are_used_up_and_then_made_on_demand(zoo_bundle):
    method = Slalom.from_bundle(zoo_bundle)
    assert method.precompute(3) > 0
    left = [method.pads_left]
    with InProcessTransport(half_of_bundle(zoo_bundle)) as transport:
        method.prepare(transport)
        for count in (2, 4, 1):
            logits = method.infer(records(count)).logits
            assert torch.equal(logits, _expected(zoo_bundle, records(count)))
            left.append(method.pads_left)
    assert left == [3, 1, 0, 0]


def test_all_that_leaves_is_what_blinding_made(zoo_bundle, monkeypatch):
    made = []

    def watched(*arguments):
        made.append(runner_blind(*arguments))
        return made[-1]

    runner_blind = runner_module.blind
    monkeypatch.setattr(runner_module, "blind", watched)
    method = Slalom.from_bundle(zoo_bundle)
    with Recorded(InProcessTransport(half_of_bundle(zoo_bundle))) as cloud:
        method.prepare(cloud)
        method.infer(records(3))
    assert len(made) == len(cloud.transcript) == 9
    for blinded, sent in zip(made, cloud.transcript, strict=True):
        ((name, dtype, _, payload),) = sent.tensors
        assert (name, dtype) == ("x", "torch.int32")
        assert payload == blinded.numpy().tobytes()
        assert int(blinded.min()) >= 0
        assert int(blinded.max()) < PRIME


def test_one_place_in_the_code_sends(zoo_bundle):
    senders = []
    for path in Path(slalom_package.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("ask", "ask_records", "submit"):
                senders.append(path.name)
    assert senders == ["runner.py"]


def test_no_accumulator_exceeds_half_the_field(tiny, zoo_bundle):
    for bundle in (tiny, zoo_bundle):
        for layer in layers_of(bundle, settings_of(bundle.manifest)):
            # The worst that any input can do: every product of the largest magnitude, all of one sign.
            flat = layer.weight.to(torch.int64).flatten(1)
            worst = layer.quantise(1e30 * flat.sign().float()).to(torch.int64)
            assert int((flat * worst).sum(dim=1).max()) <= half_of(PRIME)


def test_a_bundle_whose_sums_could_leave_the_field_is_refused_by_the_layer_s_name(zoo_bundle):
    private = {**zoo_bundle.private, "clips": zoo_bundle.private["clips"].clone()}
    private["clips"][3] = 2**20
    with pytest.raises(BundleError, match="layer 'same': an accumulator could reach"):
        Slalom.from_bundle(replace(zoo_bundle, private=private))


def test_a_layer_too_wide_for_the_field_is_refused_by_name():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(200_000, 2))
    nn.init.ones_(wide[1].weight)
    model = WholeModel(wide, zoo().architecture, spec_of((1, 400, 500)), ("a", "b"))
    model = replace(model, calibration=torch.ones(1, 1, 400, 500))
    with pytest.raises(ModelError, match=r"layer '1' adds up 200000 products.*fewer than 4 bits"):
        Slalom.bundle_of(model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"activation_bits": 3}, "activation_bits is 3"),
        ({"weight_bits": 16}, "weight_bits is 16"),
        ({"headroom": 0.5}, "headroom is 0.5"),
        ({"repetitions": 0}, "repetitions is 0"),
        ({"bits": 8}, "no setting bits"),
    ],
)
def test_wrong_settings_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Slalom.bundle_of(zoo(), **settings)


def test_it_asks_for_records_to_calibrate_on():
    with pytest.raises(ConfigError, match="--data"):
        Slalom.bundle_of(replace(zoo(), calibration=None))
    with pytest.raises(ConfigError, match="pads is -1"):
        Slalom.from_bundle(Slalom.bundle_of(zoo()), pads=-1)


def test_a_channel_of_zeros_and_an_input_that_is_always_zero_do_no_harm():
    whole = zoo()
    with torch.no_grad():
        whole.module.strided.weight[2] = 0
        whole.module.dilated.weight.zero_()
    bundle = Slalom.bundle_of(replace(whole, calibration=torch.zeros(2, *SHAPE)))
    x = records(3)
    assert torch.equal(_inferred(bundle, x).logits, _expected(bundle, x))


@pytest.mark.parametrize("spoil", ["prime", "weight shape", "no weight", "no scale", "settings"])
def test_a_damaged_bundle_is_refused(zoo_bundle, spoil):
    manifest, private, cloud = zoo_bundle.manifest, dict(zoo_bundle.private), dict(zoo_bundle.cloud)
    settings = dict(manifest.settings)
    if spoil == "prime":
        settings["prime"] = 10_485_767
    elif spoil == "weight shape":
        cloud["layer-0"] = cloud["layer-0"][:1]
    elif spoil == "no weight":
        del cloud["layer-8"]
    elif spoil == "no scale":
        del private["layer-1.scale"]
    else:
        settings["rounds"] = 3
    bundle = replace(
        zoo_bundle,
        manifest=manifest.model_copy(update={"settings": settings}),
        private=private,
        cloud=cloud,
    )
    with pytest.raises(BundleError):
        Slalom.from_bundle(bundle)
    if spoil != "no scale":
        with pytest.raises(BundleError):
            half_of_bundle(bundle)


def test_the_cloud_learns_no_value_range(zoo_bundle):
    text = zoo_bundle.manifest.model_dump_json()
    assert set(zoo_bundle.cloud) == {f"layer-{i}" for i in range(9)}
    assert all(t.dtype == torch.int16 for t in zoo_bundle.cloud.values())
    for clip in zoo_bundle.private["clips"].tolist():
        assert f": {clip}," not in text
    assert "scale" not in text


def test_training_is_refused_with_the_reason(zoo_bundle):
    method = Slalom.from_bundle(zoo_bundle)
    with pytest.raises(TrainingUnsupportedError, match=r"every step changes the weights"):
        method.train_step(records(2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TrainingUnsupportedError):
        method.trained()


@pytest.mark.slow
def test_it_is_within_a_point_of_the_float_model_on_a_thousand_digits():
    splits = load_embedded()
    spec = input_spec(splits.train.image_shape)
    model = WholeModel.build("resnet_small", input=spec, arguments={"classes": 10, "in_channels": 1})
    made = convert(model, Conversion("slalom", {}, epochs=3, batch=32), data=splits)
    assert made.measured.records == 1000
    assert made.whole is not None
    assert made.whole.accuracy > 90
    assert abs(made.measured.accuracy - made.whole.accuracy) <= 1.0
