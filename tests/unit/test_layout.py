"""Shuffled layouts in a release, its configuration, the cloud model that reads them, and what refuses them."""

import json
import math

import pytest
import torch
from torch import nn

from delta.bundle.manifest import Architecture, Manifest
from delta.bundle.store import load_bundle, load_cloud_part, save_bundle
from delta.errors import ConfigError, ModelError
from delta.methods.delta.cloud import build_cloud_model, load_cloud_model
from delta.methods.delta.private import DeltaMethod
from delta.models.bag_model import bag_of_patches
from delta.models.macs import count_macs
from delta.models.plan import plan
from delta.privacy.claim import claim_of
from delta.release.config import SHUFFLED_MECHANISM, LayoutConfig, ReleaseConfig
from delta.release.ids import RecordIds
from delta.release.layout import cut, unpack_patches
from delta.release.memo import InMemoryMemo
from delta.release.noise import NoiseKey
from delta.release.packing import unpack_bits
from delta.release.releaser import Releaser
from delta.training import cloud_trainer
from delta.training.bags import mirrored_bags
from delta.training.config import FitConfig, TrainConfig
from delta.training.controls import random_bits
from delta.training.release_stage import build_release, check_release
from delta.training.run_config import RunConfig
from delta.training.spec import DatasetSpec, JobSpec
from tests.shuffled import shuffled, shuffled_config
from tests.trained import settings, small_parts

KEY = NoiseKey(bytes(range(32)))


@pytest.fixture(scope="module")
def made(trained):
    """A shuffled bundle without noise, and its stage 2."""
    return shuffled(trained)


def releaser(trained, *, key=KEY, memo=None, **changes):
    release, parts = build_release(trained.private, shuffled_config(**changes))
    return Releaser(
        release,
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=key,
        memo=memo,
    )


def kept_bits(trained, x, ids, **changes):
    """The bits of the same release were its layout kept."""
    release, parts = build_release(trained.private, TrainConfig.of(settings(**changes)))
    made = Releaser(
        release,
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=KEY,
        memo=None,
    )
    return unpack_bits(made.release(x, ids).payload, release.message.shape)


def bags(bits, patch):
    """Patches of each record as a sorted list, whatever their order and mirrors."""
    found = []
    for record in cut(bits, patch):
        views = [[p.flip(axes).flatten().tolist() for axes in ((), (-1,), (-2,), (-1, -2))] for p in record]
        found.append(sorted(min(view) for view in views))
    return found


# The release


def test_a_shuffled_record_is_the_bag_of_a_kept_ones_patches(trained):
    x, ids = trained.x[:6], RecordIds(trained.test.ids[:6])
    sent = releaser(trained).release(x, ids).payload
    kept = kept_bits(trained, x, ids)
    seen = unpack_patches(sent, (1, 16, 16), patch=4)
    assert sent.shape == (6, 32)
    assert bags(seen, 4) == bags(kept, 4)
    assert not any(torch.equal(a, b) for a, b in zip(seen, kept, strict=True))


def test_a_retry_a_restart_and_another_batch_send_the_same_bytes_and_others_another_order(trained):
    for noise in ({}, {"noise": {"epsilon": 8}}):
        x, ids = trained.x[:5], RecordIds(trained.test.ids[:5])
        first = releaser(trained, memo=InMemoryMemo(), **noise)
        sent = first.release(x, ids).payload
        assert torch.equal(first.release(x, ids).payload, sent)
        assert not any(first.release(x, ids).fresh)
        assert torch.equal(releaser(trained, **noise).release(x, ids).payload, sent)
        alone = releaser(trained, **noise).release(x[2:3], RecordIds(ids.records[2:3])).payload
        assert torch.equal(alone, sent[2:3])
        names = RecordIds([f"{name}#2" for name in ids.records])
        again = releaser(trained, **noise).release(x, names).payload
        assert not any(torch.equal(a, b) for a, b in zip(again, sent, strict=True))
        strange = releaser(trained, key=NoiseKey(bytes(32)), **noise).release(x, ids).payload
        assert not any(torch.equal(a, b) for a, b in zip(strange, sent, strict=True))


def test_orders_of_many_releases_of_one_record_are_uniform(trained):
    """Over the releaser itself: four patches of 8×8, each equally often at each place."""
    n = 2000
    x = trained.x[:1].expand(n, -1, -1, -1).contiguous()
    sent = releaser(trained, patch=8, mirror=False).release(x, RecordIds([f"look-{i}" for i in range(n)]))
    patches = cut(unpack_patches(sent.payload, (1, 16, 16), patch=8), 8)
    own = cut(kept_bits(trained, x[:1], RecordIds(["look-0"])), 8)[0]
    assert len({tuple(p.flatten().tolist()) for p in own}) == 4
    there = (patches[:, :, None] == own).flatten(3).all(3).double()  # [n, place sent, place of the map]
    assert torch.equal(there.sum(2), torch.ones(n, 4).double())
    assert float((there.mean(0) - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / n)


def test_an_order_without_a_key_is_refused(trained):
    with pytest.raises(ConfigError, match="shuffled layout needs a noise key"):
        releaser(trained, key=None)


def test_a_claim_is_that_of_the_noise_and_never_better(trained):
    noisy = shuffled_config(noise={"epsilon": 8})
    release, _ = build_release(trained.private, noisy)
    kept = build_release(trained.private, TrainConfig.of(settings(noise={"epsilon": 8})))[0]
    assert claim_of(release, labels="disclosed").to_json() == claim_of(kept, labels="disclosed").to_json()
    assert claim_of(build_release(trained.private, shuffled_config())[0], labels="disclosed").claim == "none"


# The configuration


def test_a_kept_layout_is_in_no_hash_and_a_shuffled_one_in_all(trained, made):
    kept = trained.bundles["none"].manifest.release
    assert kept is not None
    text = kept.model_dump_json()
    assert "layout" not in text
    assert "cloud_architecture" not in trained.bundles["none"].manifest.model_dump_json()
    assert ReleaseConfig.model_validate_json(text).release_hash == kept.release_hash
    spelled = {**json.loads(text), "layout": {"kind": "kept"}}
    assert ReleaseConfig.parse(spelled, what="release").release_hash == kept.release_hash
    hashes = {kept.release_hash}
    for changes in ({}, {"patch": 8}, {"mirror": False}):
        release, _ = build_release(trained.private, shuffled_config(**changes))
        assert release.mechanism == SHUFFLED_MECHANISM
        assert ReleaseConfig.model_validate_json(release.model_dump_json()) == release
        assert release.payload_bytes == kept.payload_bytes
        hashes.add(release.release_hash)
    assert len(hashes) == 4
    manifest = made[0].manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.binding.mechanism == SHUFFLED_MECHANISM


def test_a_release_hash_from_before_there_were_layouts():
    """Written down before: a change of it would void the stored releases and bundles of every user."""
    known = {"kind": "data-independent"}
    part = {"hash": "0" * 64, "provenance": known}
    release = ReleaseConfig.parse(
        {
            "input": {"shape": (1, 16, 16), "mean": (0.5,), "std": (0.25,)},
            "ir_shape": (8, 16, 16),
            "backbone": part,
            "basis": {"kind": "pca", "rank": 2, "component": part},
            "crop": {"block": 16, "keep": 8},
            "message": {"map": "channel-mean", "shape": (1, 16, 16), "component": part},
            "sigma": 1.2,
        },
        what="release",
    )
    assert release.release_hash == OLD_HASH


OLD_HASH = "71588f57e4e3342cf114a3163fbcd5e83e15272eabd69c38a033e910c65fbd47"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": {"kind": "shuffled"}}, "needs patch"),
        ({"layout": {"kind": "kept", "patch": 4}}, "takes none"),
        ({"layout": {"patch": 4}}, "mechanism"),
        ({"layout": {"patch": 3}, "mechanism": SHUFFLED_MECHANISM}, "take 2 or 4"),
        ({"layout": {"patch": 16}, "mechanism": SHUFFLED_MECHANISM}, "take 4 or 8"),
        ({"mechanism": SHUFFLED_MECHANISM}, "layout 'shuffled'"),
    ],
)
def test_faults_of_a_layout_are_named(trained, change, words):
    release = trained.bundles["none"].manifest.release
    with pytest.raises(ConfigError, match=words):
        ReleaseConfig.parse({**release.model_dump(mode="json"), **change}, what="release")


def test_a_patch_that_does_not_divide_is_refused_before_any_work():
    with pytest.raises(ConfigError, match=r"patch of 3 does not cut the message's 16×16.*take 2 or 4"):
        check_release(shuffled_config(patch=3), small_parts())
    with pytest.raises(ConfigError, match="8×8"):
        check_release(shuffled_config(patch=16, offload="principal"), small_parts())
    check_release(shuffled_config(patch=8), small_parts())


def test_a_run_takes_a_layout_from_its_file_and_from_changes(tmp_path):
    path = tmp_path / "run.yaml"
    for text, changes, expected in (
        ("noise: none\n", (), "kept"),
        ("noise: none\nlayout: kept\n", ("layout.patch=8",), "shuffled 8×8, mirrored"),
        ("noise: none\nlayout: {patch: 8, mirror: false}\n", (), "shuffled 8×8"),
        ("noise: none\nlayout: {patch: 8}\n", ("layout.patch=4", "layout.mirror=false"), "shuffled 4×4"),
        ("noise: none\nlayout: {patch: 8}\n", ("layout=kept",), "kept"),
        ("noise: none\nlayout: {patch: 8}\n", ("layout.patch=null",), "kept"),
    ):
        path.write_text(text)
        run = RunConfig.read(path, changes=changes)
        assert run.layout.text == expected
        assert run.training.layout == run.layout


# The cloud model


def test_a_bag_model_does_not_mind_the_order_and_keeps_records_apart():
    torch.manual_seed(0)
    model = bag_of_patches(classes=5, channels=2, patch=4, width=4, layers=2).eval()
    patches = torch.randint(0, 2, (3, 9, 2, 4, 4)).float() * 2 - 1
    logits = model(patches)
    assert logits.shape == (3, 5)
    torch.testing.assert_close(model(patches[:, torch.randperm(9)]), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(patches[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(patches.flip(-1)), logits, atol=1e-3)


@pytest.mark.parametrize("patch", [1, 2, 4, 7, 8, 16, 56])
def test_patches_of_any_size_are_read(patch):
    model = bag_of_patches(classes=3, channels=1, patch=patch, width=2, layers=1).eval()
    assert model(torch.ones(2, 4, 1, patch, patch)).shape == (2, 3)


def test_macs_of_a_bag_model_are_those_of_its_products():
    w, d, n = 4, 16, 4
    model = bag_of_patches(classes=10, channels=1, patch=8, width=w, layers=2)
    convolutions = 64 * 9 * w + 64 * 9 * w * w + 16 * 9 * w * 2 * w
    token = 2 * w * 16 * d
    layer = n * (4 * d * d + 2 * d * 2 * d) + 2 * n * n * d
    assert count_macs(model, torch.ones(1, n, 1, 8, 8)) == n * (convolutions + token) + 2 * layer + d * 10
    assert 5e6 < plan("resnet18", classes=10, input=(3, 32, 32), layout_patch=8).macs["cloud"] < 2e8


def test_the_cloud_model_reads_packed_and_floating_bits_alike(made):
    bundle, stage = made
    bits = stage.held_out_bits[:4]
    model = load_cloud_model(bundle.cloud_part)
    floats = unpack_patches(bits, (1, 16, 16), patch=4).float() * 2 - 1
    torch.testing.assert_close(model(bits), model(floats))
    assert bundle.facts.cloud_macs == count_macs(model, bits[:1])


def test_a_model_that_reads_other_bags_is_refused(made):
    release, architecture = made[0].manifest.release, made[0].manifest.architecture_in_cloud
    for wrong in (
        architecture.model_copy(update={"arguments": {**architecture.arguments, "patch": 8}}),
        architecture.model_copy(update={"arguments": {**architecture.arguments, "channels": 2}}),
        made[0].manifest.architecture,
    ):
        with pytest.raises(ModelError, match="bag_of_patches"):
            build_cloud_model(wrong, release)
    for sizes in ({"width": 0}, {"layers": 99}, {"patch": True}, {"classes": 2**20}):
        with pytest.raises(ModelError, match=next(iter(sizes))):
            bag_of_patches(**{"classes": 3, "channels": 1, "patch": 4, **sizes})


def test_a_shuffled_bundle_is_saved_exported_and_answered_by_its_cloud(made, trained, tmp_path):
    bundle, _ = made
    loaded = load_bundle(save_bundle(bundle, tmp_path / "bundle"))
    assert loaded.manifest == bundle.manifest
    part = load_cloud_part(tmp_path / "bundle")
    # No user's code has a part in the cloud: the target of the whole model is not asked for.
    half = DeltaMethod.cloud_half(part, device=torch.device("cpu"))
    payload = DeltaMethod(bundle, key=KEY).infer(trained.x[:3], RecordIds(["a", "b", "c"])).extras["payload"]
    logits = half.operations["predict"].run({"bits": payload})["logits"]
    torch.testing.assert_close(logits, load_cloud_model(part)(payload))


# Further views in the cloud


def test_views_of_bags_mirror_patches_and_leave_them_where_they_are():
    bits = torch.randint(0, 2, (50, 2, 8, 8)).float() * 2 - 1
    generator = torch.Generator().manual_seed(0)
    layout = LayoutConfig(kind="shuffled", patch=4)
    seen = mirrored_bags(bits, layout, generator=generator)
    assert bags(seen, 4) == bags(bits, 4)
    share = float((cut(seen, 4) == cut(bits, 4)).flatten(2).all(2).double().mean())
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 200)
    together = mirrored_bags(bits, layout.model_copy(update={"mirror": False}), generator=generator)
    for one, before in zip(cut(together, 4), cut(bits, 4), strict=True):
        assert torch.equal(one, before) or torch.equal(one, before.flip(-1))
    assert torch.equal(mirrored_bags(bits, LayoutConfig(), generator=generator), bits)


def test_a_bag_model_trains_under_mixed_precision():
    model = bag_of_patches(classes=3, channels=1, patch=4, width=4, layers=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(
            model(torch.ones(4, 4, 1, 4, 4)).float(), torch.tensor([0, 1, 2, 0])
        )
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("mirror", "augment", "changed"),
    [(True, "none", False), (True, "shift", True), (False, "shift", False), (False, "shift+flip", True)],
)
def test_a_cloud_mirrors_what_may_be_mirrored(trained, mirror, augment, changed):
    """Where the release mirrors patches further mirrors are no new kind; else only flips ask for them."""
    release, _ = build_release(trained.private, shuffled_config(mirror=mirror))
    spec = DatasetSpec(release=release, classes=10, records=8)
    architecture = Architecture(target="delta.models:bag_of_patches")
    job = JobSpec(architecture=architecture, fit=FitConfig(epochs=1), augment=augment)
    packed = random_bits(8, release.payload_bytes, seed=0)
    views = cloud_trainer._views(packed, spec, job, torch.Generator().manual_seed(0))
    assert views.is_floating_point() == changed
    if changed:
        before = unpack_patches(packed, (1, 16, 16), patch=4).float() * 2 - 1
        assert bags(views, 4) == bags(before, 4)
        assert not torch.equal(views, before)
