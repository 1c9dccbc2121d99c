"""Attacks on shuffled releases: the tap shows what leaves, bags are matched, patches are put back, and refusals."""

import itertools
import json

import numpy as np
import pytest
import torch

from delta.attacks.bag_tap import BagTap
from delta.attacks.jigsaw import JigsawNet, JigsawTap, fit_jigsaw, shared_out
from delta.attacks.matching import bag_scores
from delta.attacks.release_tap import ReleaseTap, victim_key
from delta.attacks.settings import AttackSettings
from delta.attacks.suite import run_attacks
from delta.attacks.tap import generator_on
from delta.errors import ConfigError
from delta.methods.base import RecordIds
from delta.methods.delta.private import DeltaMethod
from delta.release.layout import cut, restored, unpack_patches
from tests.shuffled import shuffled

CPU = torch.device("cpu")
QUICK = {"epochs": 1, "width": 4, "batch": 64, "classifier_epochs": 1}


@pytest.fixture(scope="module")
def bundle(trained):
    return shuffled(trained)[0]


@pytest.fixture(scope="module")
def tap(bundle):
    return ReleaseTap(bundle)


def test_the_tap_shows_the_bags_that_leave_and_their_keyed_order(trained, bundle, tap):
    x, ids = trained.x[:6], trained.test.ids[:6]
    seen = tap.capture(x, ids, seed=3)
    sent = DeltaMethod(bundle, key=victim_key(3)).infer(x, RecordIds(records=ids)).extras["payload"]
    assert torch.equal(seen, unpack_patches(sent, tap.shape, patch=4).float() * 2 - 1)
    truth = tap.arrangement(x, ids, seed=3)
    kept = tap.kept(tap.messages(x), generator=generator_on(CPU, 0))
    assert torch.equal(restored(cut(seen, 4), truth), cut(kept, 4))
    assert not tap.adds_up
    with pytest.raises(ConfigError, match="keeps its layout"):
        ReleaseTap(trained.bundles["none"]).arrangement(x, ids, seed=3)


def test_simulated_bags_have_the_law_of_captured_ones(trained, tap):
    """At each place each patch of the map is as likely as any other, mirrored in every way."""
    n = 800
    x = trained.x[:1].expand(n, -1, -1, -1).contiguous()
    captured = tap.capture(x, [f"r{i}" for i in range(n)])
    simulated = tap.simulate(x, looks=1, generator=generator_on(CPU, 0))
    for seen in (captured, simulated):
        assert set(seen.unique().tolist()) == {-1.0, 1.0}
        assert len({bytes(one.numpy().tobytes()) for one in seen}) > n - 5
    # Over orders and mirrors a bit has the mean of its place in all patches; 256 means of 800 looks.
    patches = cut(tap.kept(tap.messages(x[:1]), generator=generator_on(CPU, 0)), 4)
    level = sum(patches.flip(axes) for axes in ((), (-1,), (-2,), (-1, -2))).mean((0, 1)) / 4
    for seen in (captured, simulated):
        assert float((cut(seen, 4).mean(0) - level).abs().max()) < 5 * n**-0.5


def test_bags_are_matched_whatever_their_order_and_mirrors(trained, tap):
    x, ids = trained.x[:40], trained.test.ids[:40]
    seen = cut(tap.capture(x, ids), 4).flatten(2)
    messages = tap.templates(x).view(-1, *tap.shape)
    found = bag_scores(seen, tap.bags(messages, 4), sigma=None)
    assert torch.equal(found.argmax(1), torch.arange(40))
    assert tap.bags(messages, 4).shape == (40, 64, 16)
    unmirrored = bag_scores(seen, cut(messages, 4).flatten(2), sigma=None)
    assert bool((found.max(1).values > unmirrored.max(1).values).all())


def test_bags_in_order_link_the_releases_of_a_record_and_no_others(trained, tap):
    x = trained.x[:30]
    bag = BagTap(tap)
    one, two = (bag.capture(x, [f"{name}{i}" for i in range(30)]) for name in ("a", "b"))
    assert torch.equal(one, two)  # without noise a bag is all that there is
    assert not torch.equal(tap.capture(x, ["a"] * 30), tap.capture(x, ["b"] * 30))
    assert len({bytes(row.numpy().tobytes()) for row in one}) == 30
    assert torch.equal(one.sum((1, 2, 3)), tap.capture(x, ["a"] * 30).sum((1, 2, 3)))
    with pytest.raises(ConfigError, match="no bag"):
        BagTap(ReleaseTap(trained.bundles["none"]))


def test_places_are_shared_out_as_brute_force_does():
    scores = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(0))
    found = shared_out(scores)
    for one, places in zip(scores, found.tolist(), strict=True):
        best = max(
            itertools.permutations(range(4)), key=lambda way: sum(float(one[i, p]) for i, p in enumerate(way))
        )
        assert tuple(places) == best


def test_a_net_that_knows_restores_the_map_and_one_that_does_not_is_at_chance(trained, tap):
    x, ids = trained.x[:30], trained.test.ids[:30]
    seen, truth = tap.capture(x, ids), tap.arrangement(x, ids, seed=0)
    net = JigsawNet(channels=1, patch=4, places=16, mirror=True, width=4).eval()

    class Knows(JigsawNet):
        def forward(self, patches):
            turns = truth.mirrors[:, :, 0] + 2 * truth.mirrors[:, :, 1].long()
            logits = torch.zeros(len(patches), 16, 16 * 4)
            logits.scatter_(2, (truth.order * 4 + turns)[:, :, None], 50.0)
            return logits.view(-1, 16, 16, 4)

    perfect = JigsawTap(tap, Knows(channels=1, patch=4, places=16, mirror=True, width=4))
    found = perfect.placement(seen, truth)
    assert (found.placed, found.turned, found.bits) == (100, 100, 100)
    assert found.bits_before < 90
    kept = tap.kept(tap.messages(x), generator=generator_on(CPU, 0))
    torch.testing.assert_close(perfect.solved(seen), torch.cat([kept, kept], 1), atol=1e-5, rtol=0)
    blind = JigsawTap(tap, net).placement(seen, truth)
    # 480 patches at 1/16 each: five standard deviations are 5.5 points, and those of a record hang together.
    assert abs(blind.placed - 6.25) < 11
    assert blind.chance == 6.25


def test_the_jigsaw_attack_learns_where_patches_belong(trained, tap):
    """Digits lie in the middle of their frame: their patches tell their places far above chance within seconds."""
    images = trained.data.train.images
    solver, effort = fit_jigsaw(
        tap, images, trained.bundles["none"].manifest.input, epochs=10, width=8, batch=50
    )
    assert effort["epochs"] == 10
    truth = tap.arrangement(trained.x, trained.test.ids, seed=0)
    found = solver.placement(tap.capture(trained.x, trained.test.ids), truth)
    assert found.placed > 2 * found.chance
    assert found.bits > found.bits_before


@pytest.fixture(scope="module")
def report(trained, bundle):
    settings = AttackSettings(
        **QUICK, attacks=("matching", "labels", "decoder", "jigsaw", "optimisation"), taps=("release",),
        candidates=(100,), observations=(1, 4), auxiliary=128, searched=2, steps=2,
    )  # fmt: skip
    return run_attacks(bundle, trained.data, settings)


def test_the_suite_takes_a_shuffled_release_as_what_it_is(report):
    figures = json.loads(json.dumps(report.to_json()))
    assert figures["release"]["layout"] == "shuffled 4×4, mirrored"
    assert [(row["attack"], row["looks"]) for row in figures["taps"]] == [("decoder", 1), ("jigsaw", 1)]
    assert {"placed", "turned", "chance", "bits", "seconds"} <= set(figures["taps"][1]["jigsaw"])
    assert figures["strongest"][0]["ssim"] == max(row["ssim"] for row in figures["taps"])
    (match,) = figures["matching"]
    assert (match["patch"], match["candidates"]) == (4, 100)
    assert match["top1"] > 95  # noiseless patches give a record away, in whatever order
    assert figures["labels"]["records"] == 100
    notes = " ".join(figures["notes"])
    assert "patches in their places" in notes
    assert "optimisation attack was left out" in notes


def test_labels_are_guessed_from_the_bytes_that_the_cloud_gets(trained, bundle, report):
    x, ids = trained.x, trained.test.ids
    half = DeltaMethod.cloud_half(bundle.cloud_part, device=CPU)
    payload = DeltaMethod(bundle, key=victim_key(0)).infer(x, RecordIds(records=ids)).extras["payload"]
    logits = half.operations["predict"].run({"bits": payload})["logits"]
    right = 100 * float((logits.argmax(1) == trained.test.y).double().mean())
    assert report.labels["cloud_accuracy"] == pytest.approx(right)


def test_what_does_not_go_with_a_layout_is_refused_or_said(trained, bundle):
    jigsaw = AttackSettings(**QUICK, attacks=("jigsaw",))
    with pytest.raises(ConfigError, match="this bundle keeps its layout; leave jigsaw out"):
        run_attacks(trained.bundles["none"], trained.data, jigsaw)
    other = AttackSettings(**QUICK, attacks=("matching",), patch=8)
    with pytest.raises(ConfigError, match="leave it out, or give 4"):
        run_attacks(bundle, trained.data, other)
    alone = AttackSettings(
        **QUICK, attacks=("decoder",), taps=("release",), candidates=(100,), auxiliary=64, victims=20
    )
    notes = run_attacks(bundle, trained.data, alone).to_json()["notes"]
    assert any("add jigsaw to --attacks" in note for note in notes)


def test_noise_and_shuffling_go_together(trained):
    noisy = ReleaseTap(shuffled(trained, noise={"epsilon": 500}, mirror=False)[0])
    assert noisy.noisy
    x, ids = trained.x[:4], trained.test.ids[:4]
    captured = noisy.capture(x, ids, looks=3, fresh=False)
    assert torch.equal(captured, noisy.capture(x, ids))
    assert set(np.unique(captured.numpy())) == {-1.0, 1.0}
    assert noisy.bags(noisy.messages(x), 4).shape == (4, 16, 16)
    assert noisy.simulate(x, looks=2, generator=generator_on(CPU, 0)).unique().numel() == 3
