"""What a training draws is its own: it depends on nothing that ran before, and the caller's numbers stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from delta.bundle.manifest import Architecture
from delta.bundle.store import weights_hash
from delta.decomposition.basis import pca_basis
from delta.decomposition.decomposer import Decomposer
from delta.errors import CheckpointError
from delta.methods.delta.parts import PrivateParts
from delta.training.checkpoint import Checkpoint, CheckpointStore
from delta.training.cloud_trainer import InteractiveTrainer
from delta.training.config import FitConfig, TrainConfig
from delta.training.fit import fit
from delta.training.interactive import MergedMain
from tests.small_fit import STEPS, small_fit
from tests.trained import settings
from tests.training_jobs import dataset_spec, job_spec, stored_releases

CPU = torch.device("cpu")
EXCHANGES = 6


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, identity="one", every_steps=1)


class _CutError(Exception):
    pass


# Fits


def _cut(stage: str, done: int, total: int) -> None:
    if done == STEPS + 1:
        raise _CutError


def test_a_fit_with_dropout_depends_on_nothing_that_ran_before(tmp_path):
    """Two fits in a row: the second ends as it does alone, whether the first one or itself was cut, or neither."""
    alone = small_fit(None, epochs=2)

    small_fit(None, epochs=1)
    assert small_fit(None, epochs=2) == alone

    with pytest.raises(_CutError):
        small_fit(_store(tmp_path / "second"), epochs=2, progress=_cut)
    torch.rand(7)  # what comes between
    small_fit(None, epochs=1)
    assert small_fit(_store(tmp_path / "second"), epochs=2) == alone


@pytest.mark.parametrize("cut", [False, True])
def test_the_callers_random_numbers_stay_as_they_were(tmp_path, cut):
    before = torch.get_rng_state()
    if cut:
        with pytest.raises(_CutError):
            small_fit(_store(tmp_path), epochs=2, progress=_cut)
        assert torch.equal(torch.get_rng_state(), before)
    small_fit(_store(tmp_path), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_who_watches_a_fit_may_draw_without_a_trace():
    assert small_fit(None, epochs=1, progress=lambda *step: torch.rand(3)) == small_fit(None, epochs=1)


def _dropped(seed: int) -> list[float]:
    """What dropout leaves of ones in each step."""
    seen: list[float] = []

    def forward(net: nn.Module, index: torch.Tensor) -> torch.Tensor:
        out = net(torch.ones(len(index), 64))
        seen.append(float(nn.functional.dropout(torch.ones(64)).sum()))
        return out

    fit(
        nn.Linear(64, 2),
        forward,
        lambda logits, index: logits.square().mean(),
        records=8,
        config=FitConfig(epochs=4, batch=4),
        generator=torch.Generator().manual_seed(seed),
    )
    return seen


def test_dropout_follows_the_generators_seed_and_differs_from_step_to_step():
    first = _dropped(0)
    assert first == _dropped(0)
    assert first != _dropped(1)
    assert len(set(first)) > 1


# The cloud's side of an interactive training

JOB = job_spec(
    architecture=Architecture(target="tests.dropout_net:Net", arguments={}, split_at="body"),
    steps=EXCHANGES,
    augment="shift",
)


def _trainer(folder: Path, *, step: int = 0) -> InteractiveTrainer:
    return InteractiveTrainer(
        dataset_spec(),
        JOB,
        device=CPU,
        allowed=[JOB.architecture.target],
        checkpoints=_store(folder),
        step=step,
    )


def _exchange(trainer: InteractiveTrainer, upto: int) -> None:
    releases = stored_releases()
    while trainer.step < upto:
        part = slice(8 * trainer.step, 8 * trainer.step + 8)
        trainer.exchange(releases.bits[part], releases.labels[part], update=True, checkpoint=True)


@pytest.mark.parametrize("step", [1, 4, EXCHANGES])
def test_the_clouds_side_goes_on_with_its_own_dropout(tmp_path, step):
    before = torch.get_rng_state()
    whole = _trainer(tmp_path / "whole")
    _exchange(whole, EXCHANGES)
    assert torch.equal(torch.get_rng_state(), before)

    first = _trainer(tmp_path / "cut")
    _exchange(first, step)
    first.close()
    torch.rand(5)
    again = _trainer(tmp_path / "cut", step=step)
    assert (again.step, again.finished) == (step, step == EXCHANGES)
    _exchange(again, EXCHANGES)
    assert weights_hash(again.model.state_dict()) == weights_hash(whole.model.state_dict())


def test_the_clouds_side_holds_its_checkpoints_until_it_is_closed(tmp_path):
    first = _trainer(tmp_path)
    with pytest.raises(CheckpointError, match="in use by another run"):
        _trainer(tmp_path)
    first.close()
    first.close()
    with pytest.raises(CheckpointError, match="no state of step 3"):
        _trainer(tmp_path, step=3)
    _trainer(tmp_path).close()


# The private side


def _main(*, width: int = 8) -> MergedMain:
    decomposer = Decomposer(
        channels=2, height=8, width=8, rank=1, block=4, keep=2, kind="pca", basis=pca_basis(_images(8), 1)
    ).eval()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        seen = decomposer.main_input(decomposer(_images(2))).flatten(1).shape[1]
        main = nn.Sequential(nn.Flatten(), nn.Linear(seen, width), nn.Dropout(0.5), nn.Linear(width, 3))
    parts = PrivateParts(nn.Identity(), decomposer, nn.Identity(), main)
    config = TrainConfig.of(settings(augment="shift"))
    return MergedMain(parts, config, steps=EXCHANGES, device=CPU)


def _images(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def _steps(main: MergedMain, upto: int) -> None:
    while main.state.step < upto:
        step = main.state.step
        z_cloud = None if step % 2 else torch.full((4, 3), 0.5)
        main.step(_images(4, seed=step), torch.arange(4) % 3, z_cloud)


def _again(main: MergedMain, folder: Path) -> Checkpoint:
    _store(folder).save(main.state.checkpoint())
    found = _store(folder).latest()
    assert found is not None
    return found


@pytest.mark.parametrize("step", [1, 4, EXCHANGES])
def test_the_private_side_goes_on_with_its_own_dropout(tmp_path, step):
    before = torch.get_rng_state()
    whole, first, again = _main(), _main(), _main()
    _steps(whole, EXCHANGES)
    _steps(first, step)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again.state.restore(_again(first, tmp_path))
    assert again.state.notes["bad_answers"] == step // 2
    _steps(again, EXCHANGES)
    assert weights_hash(again.model.state_dict()) == weights_hash(whole.model.state_dict())


@pytest.mark.parametrize("step", [2, EXCHANGES])
def test_another_models_state_is_refused_and_changes_nothing(tmp_path, step):
    other, main = _main(width=9), _main()
    _steps(other, step)
    before = weights_hash(main.model.state_dict())
    with pytest.raises(CheckpointError, match="weights are not this model's"):
        main.state.restore(_again(other, tmp_path))
    assert weights_hash(main.model.state_dict()) == before
    assert main.state.step == 0


@pytest.mark.parametrize("name", ["random.cpu", "random.generator", "order"])
def test_a_state_without_its_random_numbers_is_refused(tmp_path, name):
    first, main = _main(), _main()
    _steps(first, 2)
    stored = _again(first, tmp_path)
    del stored.tensors[name]
    with pytest.raises(CheckpointError, match="not of a training on this kind of device"):
        main.state.restore(stored)
