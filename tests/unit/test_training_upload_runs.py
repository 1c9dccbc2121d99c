"""Uploads across cuts, restarts and budgets: the same bytes, debited once, and before the first word."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from delta.bundle.store import weights_hash
from delta.errors import BudgetExceededError, CheckpointError, CloudUnavailableError
from delta.privacy.budget import BudgetConfig
from delta.privacy.events import RandomizedResponseLabel
from delta.privacy.ledger import UNLIMITED, InMemoryLedger
from delta.release.noise import NoiseKey
from delta.training.checkpoint import FitStore
from delta.training.cloud_stage import CloudStage, Stage2, train_cloud_stage
from delta.training.config import FitConfig, LabelConfig, TrainConfig
from delta.training.inprocess import InProcessTrainingCloud
from delta.training.private_stage import PrivateStage
from delta.training.uploads import Uploads
from tests.hostile_training import HostileTrainingCloud, Lies
from tests.named_stage import KEY, RESPONSE, config_of, named_stage, part
from tests.trained import CLASSES, Trained


@pytest.fixture
def stage(trained: Trained) -> PrivateStage:
    """40 records to fit on and 10 held out, each of a person of its own."""
    return named_stage(trained.private)


def run(stage: PrivateStage, config: TrainConfig, where: Stage2, **options: Any) -> CloudStage:
    return train_cloud_stage(stage, config, where=where, **options)


def _files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


def test_a_damaged_file_stops_the_run_before_anything_is_sent(tmp_path, stage):
    where = Stage2(cloud=HostileTrainingCloud(), folder=tmp_path)
    run(stage, config_of(), where)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    cloud = HostileTrainingCloud()
    with pytest.raises(CheckpointError, match="damaged"):
        run(stage, config_of(), Stage2(cloud=cloud, folder=tmp_path))
    assert cloud.transcript == []


def test_running_again_sends_the_same_bytes_and_debits_nothing(tmp_path, stage):
    ledger, seen, debited = InMemoryLedger(budget=100.0), [], []
    for _ in range(2):
        cloud = HostileTrainingCloud()
        result = run(stage, config_of(labels=RESPONSE), Stage2(cloud=cloud, ledger=ledger, folder=tmp_path))
        seen.append(cloud.transcript)
        debited.append(result.debited)
        assert _files(tmp_path) == [".safetensors"]  # the key is erased once the bytes are stored
    assert seen[0] == seen[1]
    assert len(seen[0]) > 50
    assert debited == [50 + 40, 0]


def test_without_a_folder_every_run_draws_anew(stage):
    ledger = InMemoryLedger(budget=100.0)
    debited = [
        run(stage, config_of(), Stage2(cloud=HostileTrainingCloud(), ledger=ledger)).debited for _ in "ab"
    ]
    assert debited == [50, 50]


def test_a_run_that_was_cut_before_its_bytes_were_stored_draws_the_same(tmp_path, stage, monkeypatch):
    drawn = []

    def cut(self: Uploads, path: Path) -> None:
        drawn.append(self.digest())
        raise KeyboardInterrupt

    where = Stage2(cloud=HostileTrainingCloud(), folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Uploads, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            run(stage, config_of(views=2, augment="shift"), where)
    (key,) = tmp_path.iterdir()
    assert key.suffix == ".key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    run(stage, config_of(views=2, augment="shift"), where)
    (stored,) = tmp_path.iterdir()
    assert Uploads.load(stored).digest() == drawn[0]


def test_a_cut_between_storing_and_erasing_leaves_no_key_behind(tmp_path, stage):
    where = Stage2(cloud=HostileTrainingCloud(), folder=tmp_path)
    run(stage, config_of(), where)
    (stored,) = tmp_path.iterdir()
    NoiseKey.generate().save(stored.with_suffix(".key"))
    run(stage, config_of(), where)
    assert _files(tmp_path) == [".safetensors"]


@pytest.mark.parametrize("what", ["label", "image", "person", "views", "response"])
def test_other_records_labels_or_views_are_another_upload(tmp_path, stage, what):
    """Under the same names: what is stored for one must not be sent for the other."""
    fit, config = stage.fit, config_of(views=2, augment="shift")
    changed = {
        "label": replace(fit, y=torch.cat([(fit.y[:1] + 1) % CLASSES, fit.y[1:]])),
        "image": replace(fit, x=torch.cat([-fit.x[:1], fit.x[1:]])),
        "person": replace(fit, subjects=("somebody else", *fit.subjects[1:])),
    }.get(what, fit)
    other = config_of(
        **({"views": 3} if what == "views" else {"views": 2}),
        **({"labels": RESPONSE} if what == "response" else {}),
        augment="shift",
    )
    ledger = InMemoryLedger(budget=100.0)
    run(stage, config, Stage2(ledger=ledger, folder=tmp_path))
    result = run(replace(stage, fit=changed), other, Stage2(ledger=ledger, folder=tmp_path))
    assert result.debited >= 90
    assert _files(tmp_path) == [".safetensors"] * 2


def test_what_the_release_does_not_depend_on_takes_the_stored_bytes(tmp_path, stage):
    ledger = InMemoryLedger(budget=100.0)
    debited = [
        run(stage, config, Stage2(ledger=ledger, folder=tmp_path)).debited
        for config in (
            config_of(),
            config_of(cloud_fit=FitConfig(epochs=1, batch=20)),
            config_of(fusion="sum"),
            config_of(mode="interactive"),
        )
    ]
    assert debited == [50, 0, 0, 0]


# Budget


def test_a_budget_too_small_is_refused_before_the_cloud_hears_a_word(tmp_path, stage):
    ledger, cloud = InMemoryLedger(budget=1.0), HostileTrainingCloud()
    for mode in ("one-shot", "interactive"):
        with pytest.raises(
            BudgetExceededError, match="too small for the data set, and nothing was sent"
        ) as e:
            run(stage, config_of(mode=mode), Stage2(cloud=cloud, ledger=ledger, folder=tmp_path))
        assert "\n" not in str(e.value)
        assert "ward" not in str(e.value)
    assert cloud.transcript == []
    assert ledger.entries() == ()
    result = run(stage, config_of(), Stage2(cloud=cloud, ledger=InMemoryLedger(budget=2.0), folder=tmp_path))
    assert result.debited == 50


def test_without_noise_a_finite_budget_lets_nothing_out(stage):
    cloud = HostileTrainingCloud()
    with pytest.raises(BudgetExceededError, match="nothing was sent"):
        run(stage, config_of(noise="none"), Stage2(cloud=cloud, ledger=InMemoryLedger(budget=1e6)))
    assert cloud.transcript == []


@pytest.mark.parametrize(
    ("fit", "held_out", "changes", "fits"),
    [
        (("ada", "bo"), "cy", {}, True),
        (("ada", "ada"), "cy", {}, False),
        (("ada", "bo"), "ada", {}, False),  # a held-out record counts
        (("", ""), "ada", {}, False),  # unknown ones may all be the same person
        (("ada", "bo"), "cy", {"views": 2, "augment": "shift"}, False),
        (("ada", "bo"), "cy", {"labels": LabelConfig(kind="randomized-response", epsilon=4.0)}, False),
        (("ada", "bo"), "cy", {"labels": LabelConfig(kind="randomized-response", epsilon=0.1)}, True),
    ],
)
def test_all_that_is_about_one_person_adds_up(stage, fit, held_out, changes, fits):
    """A budget of μ = 2 holds one release of μ = 1.67, not two (2.36)."""
    others = [f"p{i}" for i in range(40)]
    records = part(stage.fit, 40, what="fit", subjects=[*fit, *others[2:]])
    held = part(stage.held_out, 10, what="held", subjects=[held_out, *(f"q{i}" for i in range(9))])
    subject_stage = replace(stage, fit=records, held_out=held)
    cloud, ledger = HostileTrainingCloud(), InMemoryLedger(budget=2.0)
    where = Stage2(cloud=cloud, ledger=ledger)
    if fits:
        assert run(subject_stage, config_of(**changes), where).debited >= 50
        assert ledger.spent("ada").joint_mu <= 2.0
    else:
        with pytest.raises(BudgetExceededError):
            run(subject_stage, config_of(**changes), where)
        assert cloud.transcript == []


def test_the_debit_comes_before_the_first_word(stage):
    ledger, cloud, entries = InMemoryLedger(budget=100.0), HostileTrainingCloud(), []
    cloud.before = lambda: entries.append(len(ledger.entries()))
    run(stage, config_of(), Stage2(cloud=cloud, ledger=ledger))
    assert set(entries) == {50}


# A cut upload


@pytest.mark.parametrize("cuts", [(10,), (0, 7, 1, 1, 20), (49, 1)])
def test_a_cut_upload_goes_on_where_the_acknowledged_prefix_ends(stage, cuts):
    cloud, whole = HostileTrainingCloud(Lies(cut_after=cuts)), HostileTrainingCloud()
    ledger = InMemoryLedger(budget=100.0)
    run(stage, config_of(), Stage2(cloud=cloud, ledger=ledger), key=KEY)
    run(stage, config_of(), Stage2(cloud=whole), key=KEY)
    assert cloud.releases == whole.releases
    positions = [row[1] for row in cloud.transcript if row[0] == "release"]
    assert positions == list(range(50))  # none of them twice: what had arrived was acknowledged
    assert len(ledger.entries()) == 50


def test_an_upload_that_gets_nowhere_ends_in_one_line_and_goes_on_later(tmp_path, stage):
    ledger = InMemoryLedger(budget=100.0)
    cloud = HostileTrainingCloud(Lies(cut_after=(20, *([0] * 6))))
    where = Stage2(cloud=cloud, ledger=ledger, folder=tmp_path)
    with pytest.raises(
        CloudUnavailableError, match=r"no further than 20 of 50 releases.*run again"
    ) as caught:
        run(stage, config_of(), where)
    assert "\n" not in str(caught.value)
    result = run(stage, config_of(), where)
    assert result.debited == 0
    assert [row[1] for row in cloud.transcript if row[0] == "release"] == list(range(50))


# An interactive run


def test_an_interactive_run_that_has_ended_is_taken_as_it_is_whatever_the_budget(tmp_path, stage):
    """Its last state is stored on both sides: started again it asks for the held-out records, and steps no more."""
    ledger, store = InMemoryLedger(budget="unlimited"), FitStore(tmp_path / "checkpoints", "one")
    weights, steps = [], []
    inner = InProcessTrainingCloud(allowed={"delta.models:resnet_small"}, store=store)
    cloud = HostileTrainingCloud(inner=inner)
    for budget, there in ((BudgetConfig(mu=50.0), None), (BudgetConfig(mu=60.0), None), (UNLIMITED, cloud)):
        for _ in "ab" if there else "a":
            config = config_of(mode="interactive", budget=budget)
            where = Stage2(cloud=there, ledger=ledger, folder=tmp_path / "releases", store=store)
            taken: list[int] = []
            result = run(
                stage, config, where, progress=lambda _, done, total, taken=taken: taken.append(done)
            )
            weights.append(
                weights_hash(result.private.main.state_dict()) + weights_hash(result.cloud.state_dict())
            )
            steps.append(len(taken))
    assert steps == [3, 0, 0, 0]
    assert len(set(weights)) == 1


# Labels over several uploads


def test_a_kept_label_key_tells_each_label_the_same_in_every_upload(tmp_path, stage):
    labels = {"labels": {"kind": "randomized-response", "epsilon": 1.0}}
    kept, told, debited = NoiseKey(bytes(32)), [], []
    for label_key in (kept, kept, None):
        ledger = InMemoryLedger(budget="unlimited")
        folder = tmp_path / str(len(told))
        run(stage, config_of(**labels), Stage2(ledger=ledger, folder=folder, label_key=label_key))
        uploads = Uploads.load(next(folder.glob("*.safetensors")))
        assert uploads is not None
        rows = torch.full((len(stage.fit.y),), -1)
        kept_in = ~uploads.releases.held_out
        rows[uploads.origin[kept_in]] = uploads.releases.labels[kept_in]
        told.append(rows)
        debited.append(
            {d.release_id for d in ledger.entries() if isinstance(d.event, RandomizedResponseLabel)}
        )
    assert torch.equal(told[0], told[1])  # each upload has noise and order of its own
    assert debited[0] == debited[1]  # so one ledger charges them once
    assert not torch.equal(told[0], told[2])
    assert not debited[0] & debited[2]
