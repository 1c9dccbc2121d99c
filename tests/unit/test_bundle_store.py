import json
import os
import stat

import pytest
import torch

from delta.bundle.manifest import Architecture, Manifest, PrivateFacts
from delta.bundle.store import (
    Bundle,
    export_cloud_part,
    load_bundle,
    load_cloud_part,
    save_bundle,
    weights_hash,
)
from delta.errors import BundleError, ConfigError
from delta.release.config import InputSpec


def make_bundle(scale=1.0):
    cloud = {"w": scale * torch.arange(6.0).reshape(2, 3)}
    private = {"v": torch.ones(4)}
    manifest = Manifest.sealed(
        name="toy",
        method="toy",
        input=InputSpec(shape=(1, 2, 2), mean=(0.5,), std=(0.25,)),
        class_names=("a", "b"),
        architecture=Architecture(target="delta.models:resnet18"),
        settings={"k": 1},
        logit_bound=20.0,
        labels="none",
        lineage={"seed": "0"},
        cloud_weights_hash=weights_hash(cloud),
    )
    facts = PrivateFacts(
        fusion="calibrated",
        alpha=0.5,
        alpha_max=4.0,
        main={},
        weights_hash=weights_hash(private),
        private_macs=1,
        cloud_macs=2,
        peak_private_bytes=3,
    )
    return Bundle(manifest, facts, private, cloud)


@pytest.fixture
def saved(tmp_path):
    return save_bundle(make_bundle(), tmp_path / "bundle")


def test_a_bundle_comes_back_as_it_was(saved):
    bundle = load_bundle(saved)
    assert bundle.manifest == make_bundle().manifest
    assert bundle.facts == make_bundle().facts
    assert torch.equal(bundle.cloud["w"], make_bundle().cloud["w"])
    assert torch.equal(bundle.private["v"], torch.ones(4))


def test_private_files_are_for_the_owner_only(saved):
    for name in ("private.json", "private.safetensors"):
        assert stat.S_IMODE((saved / name).stat().st_mode) == 0o600


def test_the_export_holds_nothing_private(saved, tmp_path):
    out = export_cloud_part(load_cloud_part(saved), tmp_path / "export")
    assert sorted(p.name for p in out.iterdir()) == ["cloud.safetensors", "manifest.json"]
    assert torch.equal(load_cloud_part(out).cloud["w"], make_bundle().cloud["w"])
    with pytest.raises(BundleError, match="only the cloud part"):
        load_bundle(out)


def test_the_cloud_part_loads_without_the_private_half(saved):
    os.unlink(saved / "private.json")
    os.unlink(saved / "private.safetensors")
    assert load_cloud_part(saved).manifest.name == "toy"


@pytest.mark.parametrize(
    "name", ["manifest.json", "private.json", "cloud.safetensors", "private.safetensors"]
)
def test_an_absent_file_is_named(saved, name):
    os.unlink(saved / name)
    with pytest.raises(BundleError, match=name):
        load_bundle(saved)


@pytest.mark.parametrize("name", ["cloud.safetensors", "private.safetensors"])
def test_one_flipped_bit_is_found(saved, name):
    data = bytearray((saved / name).read_bytes())
    data[-1] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(BundleError, match="does not match its manifest"):
        load_bundle(saved)


@pytest.mark.parametrize(
    "change", [{"logit_bound": -1.0}, {"unknown": 1}, {"class_names": ["a"]}, {"name": "../x"}]
)
def test_a_manifest_with_a_fault_is_refused(saved, change):
    value = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(BundleError, match=next(iter(change))):
        load_bundle(saved)


def test_a_changed_architecture_no_longer_fits_the_cloud_hash(saved):
    value = json.loads((saved / "manifest.json").read_text())
    value["architecture"]["arguments"] = {"classes": 7}
    (saved / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(BundleError, match="cloud_hash"):
        load_bundle(saved)


def test_another_schema_version_is_refused_with_both_numbers(saved):
    value = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**value, "schema_version": 9}))
    with pytest.raises(BundleError, match="version 9, this Delta reads 1"):
        load_bundle(saved)


@pytest.mark.parametrize("text", ["", "[]", "{", "\x00"])
def test_a_manifest_that_is_no_json_object_is_refused(saved, text):
    (saved / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        load_bundle(saved)


def test_saving_again_replaces_the_bundle_and_leaves_nothing_else(saved):
    save_bundle(make_bundle(scale=2.0), saved)
    assert torch.equal(load_bundle(saved).cloud["w"], make_bundle(2.0).cloud["w"])
    assert [p.name for p in saved.parent.iterdir()] == ["bundle"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").write_bytes(b"x")
    with pytest.raises(BundleError, match="not a bundle"):
        save_bundle(make_bundle(), tmp_path / "photos")
    assert (tmp_path / "photos" / "one.png").exists()


def test_an_export_never_replaces_a_whole_bundle_or_anything_of_the_owners(saved, tmp_path):
    part = load_cloud_part(saved)
    with pytest.raises(BundleError, match=r"private\.json.* would be lost"):
        export_cloud_part(part, saved)
    assert load_bundle(saved).manifest == part.manifest
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text("{}")
    (web / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"thesis\.txt"):
        export_cloud_part(part, web)
    assert (web / "thesis.txt").read_text() == "years of work"


def test_a_manifest_nested_without_end_is_refused(saved):
    (saved / "manifest.json").write_text('{"settings":' + "[" * 100_000)
    with pytest.raises(BundleError, match="not JSON"):
        load_bundle(saved)


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match="cannot be written"):
        save_bundle(make_bundle(), tmp_path / "file" / "bundle")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_every_fault_of_a_configuration_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        InputSpec.parse({"shape": [1, 2], "mean": "x", "surplus": 1}, what="input")
    text = str(caught.value)
    assert all(word in text for word in ("shape", "mean", "std", "surplus"))
    assert "\n" not in text
