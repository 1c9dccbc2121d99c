"""I1 and I3 of training: what leaves and what it may depend on, against every cloud and every private side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from delta.errors import DeltaError
from delta.training.cloud import InteractiveSession
from delta.training.cloud_stage import CloudStage, Stage2, train_cloud_stage
from delta.training.config import FitConfig, LabelConfig, TrainConfig
from delta.training.private_stage import Labelled, PrivateStage
from delta.training.release_stage import build_release
from tests.hostile_training import HostileTrainingCloud, Lies
from tests.hostile_training_lies import FALSE, REFUSED, STEP_LIES, SURVIVED, UNFIT
from tests.named_stage import KEY, RESPONSE, config_of, named_stage
from tests.trained import CLASSES, Trained

ONE_SHOT = config_of()
INTERACTIVE = config_of(mode="interactive", cloud_fit=FitConfig(epochs=1, batch=16))
CONFIGS = {
    "one-shot": ONE_SHOT,
    "one-shot, views, responses": config_of(views=2, augment="shift", labels=RESPONSE),
    "interactive": INTERACTIVE,
}

Run = Callable[[PrivateStage, TrainConfig, HostileTrainingCloud], CloudStage]


@pytest.fixture
def stage(trained: Trained) -> PrivateStage:
    """40 records to fit on and 10 held out."""
    return named_stage(trained.private)


def run(stage: PrivateStage, config: TrainConfig, cloud: HostileTrainingCloud) -> CloudStage:
    """Stage 2 under a fixed key, so that two runs may be compared bit for bit."""
    return train_cloud_stage(stage, config, where=Stage2(cloud=cloud), key=KEY)


def test_there_are_more_than_ten_hostile_clouds_of_each_mode():
    assert min(len(REFUSED) + len(SURVIVED), len(STEP_LIES)) >= 10


# The checker


def _weights_of(stage: PrivateStage, factor: float) -> PrivateStage:
    main = copy.deepcopy(stage.main)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in main.parameters():
            parameter.copy_(factor * torch.randn(parameter.shape, generator=generator))
    return replace(stage, main=main)


def _variants(stage: PrivateStage, config: TrainConfig) -> dict[str, tuple[PrivateStage, TrainConfig]]:
    """The same releases and told labels, with everything else of the private side changed."""
    held = stage.held_out
    relabelled = Labelled(held.x, (held.y + 1) % CLASSES, held.ids, held.subjects)
    return {
        "another main model": (_weights_of(stage, 1.0), config),
        "a surer main model": (_weights_of(stage, 100.0), config),
        "other labels of held-out records": (replace(stage, held_out=relabelled), config),
        "another fusion": (stage, config.model_copy(update={"fusion": "sum"})),
        "another largest α": (stage, config.model_copy(update={"alpha_max": 0.01})),
        "another B": (stage, config.model_copy(update={"logit_bound": 0.5})),
        "another step of the main model": (stage, config.model_copy(update={"merged_learning_rate": 1e-1})),
    }


def _lies(config: TrainConfig) -> dict[str, Lies]:
    if config.mode == "one-shot":
        return {**{name: lie for name, (lie, _) in REFUSED.items()}, **SURVIVED}
    steps = {f"step: {name}": Lies(step=lambda _, z, lie=lie: lie(z)) for name, lie in STEP_LIES.items()}
    return {
        **steps,
        "held out: NaN": Lies(held_out=UNFIT["NaN"]),
        "held out: zeros": Lies(held_out=FALSE["zeros"]),
    }


def interferences(
    run: Run, stage: PrivateStage, config: TrainConfig, *, only: Collection[str] = ()
) -> list[str]:
    """Names of the runs that tell their cloud something else than the honest one is told; none if I1 holds.

    A run that ends in an error may have said less. `only` names the runs to make; all where it is empty.
    """

    def said(of: PrivateStage, settings: TrainConfig, lies: Lies | None = None) -> tuple[list[Any], bool]:
        cloud = HostileTrainingCloud(lies)
        try:
            run(of, settings, cloud)
        except DeltaError:
            return cloud.transcript, True
        return cloud.transcript, False

    expected, _ = said(stage, config)
    found = []
    for name, lies in _lies(config).items():
        if only and f"cloud: {name}" not in only:
            continue
        transcript, ended = said(stage, config, lies)
        if transcript != (expected[: len(transcript)] if ended else expected):
            found.append(f"cloud: {name}")
    for name, (variant, settings) in _variants(stage, config).items():
        if only and f"private side: {name}" not in only:
            continue
        if said(variant, settings) != (expected, False):
            found.append(f"private side: {name}")
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_cloud_and_every_other_private_side_gives_the_same_transcript(stage, name):
    assert interferences(run, stage, CONFIGS[name]) == []


def _only_unsure(stage: PrivateStage, config: TrainConfig, cloud: HostileTrainingCloud) -> CloudStage:
    """The seeded violator of control: of the records to train on, only those go of which M_main is unsure."""
    top = stage.main_logits(stage.fit.x).softmax(1).max(1).values
    places = top.argsort()[: len(top) // 2].sort().values.tolist()
    fit = stage.fit
    few = Labelled(
        fit.x[places],
        fit.y[places],
        tuple(fit.ids[i] for i in places),
        tuple(fit.subjects[i] for i in places),
    )
    return run(replace(stage, fit=few), config, cloud)


class _Between:
    """A private side that does as the stage says, but handles the session itself: the base of two violators."""

    def __init__(self, cloud: HostileTrainingCloud) -> None:
        self._cloud = cloud

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    @contextmanager
    def interact(self, *job: Any, **options: Any) -> Iterator[InteractiveSession]:
        with self._cloud.interact(*job, **options) as session:
            self._session = session
            yield self

    def exchange(self, bits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return self._session.exchange(bits, labels, **options)


class _Echo(_Between):
    """A violator of content: the sign of the last answer goes into the next payload."""

    _mask = 0

    def exchange(self, bits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        answer = super().exchange(bits ^ self._mask, labels, **options)
        self._mask = int(answer is not None and float(answer.flatten()[0]) > 0)
        return answer


class _StopsWhenLiedTo(_Between):
    """A violator of control: once an answer was unfit, no step is asked for any more."""

    _sulks = False

    def exchange(self, bits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        answer = super().exchange(
            bits, labels, **{**options, "update": options["update"] and not self._sulks}
        )
        self._sulks |= answer is None or not bool(answer.isfinite().all())
        return answer


def _through(kind: type[_Between]) -> Run:
    return lambda stage, config, cloud: run(stage, config, kind(cloud))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("violator", "mode", "where"),
    [
        (_only_unsure, "one-shot", "private side: another main model"),
        (_only_unsure, "interactive", "private side: another main model"),
        (_through(_Echo), "interactive", "cloud: step: reversed"),
        (_through(_StopsWhenLiedTo), "interactive", "cloud: step: NaN"),
    ],
    ids=["only unsure, one-shot", "only unsure, interactive", "echoes", "stops when lied to"],
)
def test_the_checker_finds_a_seeded_violator(stage, violator, mode, where):
    assert interferences(violator, stage, CONFIGS[mode], only=[where]) == [where]


def test_the_harness_itself_changes_nothing(stage):
    few = ["cloud: step: NaN", "cloud: step: reversed", "private side: another main model"]
    assert interferences(_through(_Between), stage, INTERACTIVE, only=few) == []


# I3: no gradient crosses, and nothing that the cloud touched enters a release


class _WithGradient(_Between):
    """A cloud of this process that holds its graph: its answers are functions of a leaf that wants a gradient."""

    def __init__(self, cloud: HostileTrainingCloud) -> None:
        super().__init__(cloud)
        self.leaf = torch.ones((), requires_grad=True)

    def exchange(self, bits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        with torch.enable_grad():
            return self.leaf * super().exchange(bits, labels, **options)

    def held_out_logits(self, dataset: str, job: str, *, records: int) -> Tensor:
        with torch.enable_grad():
            return self.leaf * self._cloud.held_out_logits(dataset, job, records=records)


@pytest.mark.parametrize("mode", ["one-shot", "interactive"])
def test_no_gradient_reaches_the_cloud_and_none_comes_from_it(stage, mode):
    inner = HostileTrainingCloud()
    cloud = _WithGradient(inner)
    result = run(stage, CONFIGS[mode], cloud)  # type: ignore[arg-type]
    assert cloud.leaf.grad is None
    assert not inner.requires_grad
    private = result.private
    for module in (private.backbone, private.decomposer, private.message):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("lie", ["honest", "sure and wrong", "NaN"])
def test_interactive_training_moves_the_main_model_alone(stage, lie):
    step = {**STEP_LIES, "honest": lambda truth: truth}[lie]
    before = {
        name: copy.deepcopy(getattr(stage, name).state_dict()) for name in ("backbone", "decomposer", "main")
    }
    released, _ = build_release(stage, INTERACTIVE)
    result = run(stage, INTERACTIVE, HostileTrainingCloud(Lies(step=lambda _, truth: step(truth))))

    def same(module: torch.nn.Module, name: str) -> bool:
        found = module.state_dict()
        return all(torch.equal(found[key], tensor) for key, tensor in before[name].items())

    assert same(result.private.backbone, "backbone")
    assert same(result.private.decomposer, "decomposer")
    assert all(same(getattr(stage, name), name) for name in before)  # the stage can be used again
    assert not same(result.private.main, "main")
    assert result.release.release_hash == released.release_hash
    after = build_release(replace(stage, main=result.private.main), INTERACTIVE)[0]
    assert after.release_hash == released.release_hash


def test_the_labels_that_a_session_sends_are_those_of_the_upload(stage):
    """By step and by record: true where disclosed, as told where they went through randomized response."""
    clouds = {}
    for labels in (LabelConfig(), RESPONSE):
        for mode in ("one-shot", "interactive"):
            config = config_of(mode=mode, labels=labels)
            run(stage, config, clouds.setdefault((labels.kind, mode), HostileTrainingCloud()))
        told = {
            bits: label for bits, label, held in clouds[labels.kind, "one-shot"].releases.values() if not held
        }
        exchanges = [row for row in clouds[labels.kind, "interactive"].transcript if row[0] == "exchange"]
        sent: dict[bytes, int] = {}
        for _, bits, row, update, _ in exchanges:
            size = len(bits) // len(row)
            if update:
                sent |= {bits[i * size : (i + 1) * size]: label for i, label in enumerate(row)}
            else:
                assert set(row) == {0}
        assert sent == told
        assert len(sent) == 40
