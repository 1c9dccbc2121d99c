"""I1, I2 and I3 of the method `delta`: what leaves, what it may depend on, and what never comes back in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from delta.bundle.store import Bundle
from delta.errors import CloudUnavailableError
from delta.methods.base import Prediction, RecordIds
from delta.methods.delta.asking import ask
from delta.methods.delta.cloud import DeltaCloud, load_cloud_model
from delta.methods.delta.parts import load_private_parts
from delta.methods.delta.private import DeltaMethod
from delta.methods.registry import method_class
from delta.privacy.ledger import InMemoryLedger
from delta.release.memo import InMemoryMemo
from delta.release.noise import NoiseKey
from delta.release.releaser import Released, Releaser
from delta.training.private_stage import Labelled
from delta.training.uploads import release_records
from tests.clouds import Answer, ScriptedCloud, honest, hostile_clouds
from tests.non_interference import Batch, interferences, transcript_of
from tests.shuffled import shuffled
from tests.trained import Trained

KEY = NoiseKey(bytes(range(32)))
VARIANTS = ("none", "noise", "principal", "svd")


def _make(bundle: Bundle, **options: Any) -> DeltaMethod:
    return DeltaMethod(bundle, **{"key": KEY, **options})


def _half(bundle: Bundle) -> DeltaCloud:
    part = bundle.cloud_part
    return method_class("delta").cloud_half(part, device=torch.device("cpu"))


def _ids(*names: str) -> RecordIds:
    return RecordIds(names, ["s"] * len(names))


@pytest.fixture
def batches(trained: Trained) -> list[Batch]:
    """Batches of several sizes, one repeated, one without ids."""
    x = trained.x
    return [
        (x[:3], _ids("a", "b", "c")),
        (x[3:4], _ids("d")),
        (x[:3], _ids("a", "b", "c")),
        (x[:8], RecordIds()),
    ]


def _payloads(cloud: ScriptedCloud) -> list[bytes]:
    return [row[3] for sent in cloud.transcript for row in sent.tensors]


# I1, content and control


@pytest.mark.parametrize("name", VARIANTS)
def test_every_cloud_and_every_other_private_half_sees_the_same(trained, batches, name):
    assert interferences(_make, trained.bundles[name], batches) == []


def test_a_shuffled_layout_is_no_answers_business_either(trained, batches):
    assert interferences(_make, shuffled(trained, noise={"epsilon": 8})[0], batches) == []


def test_there_are_more_than_ten_hostile_clouds(trained):
    assert len(hostile_clouds(_half(trained.bundles["none"]))) >= 10


def test_a_cut_connection_may_only_shorten_what_leaves(trained, batches):
    bundle = trained.bundles["noise"]
    whole = transcript_of(_make(bundle), honest(_half(bundle)), batches)

    def cut(number: int, op: str, tensors: Any) -> Answer | Exception:
        if number >= 2:
            return CloudUnavailableError("the connection was cut")
        return Answer({"logits": torch.zeros(len(tensors["bits"]), 10)}, 0.0, 1, 1)

    assert transcript_of(_make(bundle), cut, batches)[:2] == whole[:2]
    assert all(sent in whole for sent in transcript_of(_make(bundle), cut, batches))


class _AsksIfUnsure(DeltaMethod):
    """The seeded violator of control: the cloud is asked only where the main model's margin is small."""

    def _send(self, released: Released) -> Any:
        top = self._main(released.main_input).topk(2, dim=1).values
        if bool((top[:, 0] - top[:, 1] > 2.0).all()):
            return [], None
        return super()._send(released)


class _SendsUnsureRecords(DeltaMethod):
    """Another: of a batch, only the unsure records go."""

    def _send(self, released: Released) -> Any:
        top = self._main(released.main_input).topk(2, dim=1).values
        unsure = top[:, 0] - top[:, 1] <= 2.0
        if not bool(unsure.any()) or self._transport is None:
            return [], None
        return ask(self._transport, released.payload[unsure], deadline_s=self._deadline_s), None


class _GivesUpOnFailure(DeltaMethod):
    """A violator that learns: after a bad answer it asks no more."""

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        prediction = super().infer(x, ids)
        if not prediction.used_cloud:
            self.prepare(None)
        return prediction


class _EchoesTheAnswer(DeltaMethod):
    """A violator of content: the last answer's sign goes into the next payload."""

    _mask = 0

    def _send(self, released: Released) -> Any:
        released.payload[:, -1] ^= self._mask
        return super()._send(released)

    def infer(self, x: Tensor, ids: RecordIds | None = None) -> Prediction:
        prediction = super().infer(x, ids)
        z_cloud = prediction.extras["z_cloud"]
        self._mask = int(z_cloud is not None and float(z_cloud[0, 0]) > 0)
        return prediction


@pytest.mark.parametrize(
    ("violator", "where"),
    [
        (_AsksIfUnsure, "private side"),
        (_SendsUnsureRecords, "private side"),
        (_GivesUpOnFailure, "cloud"),
        (_EchoesTheAnswer, "cloud"),
    ],
)
def test_the_checker_finds_a_seeded_violator(trained, batches, violator, where):
    found = interferences(lambda bundle: violator(bundle, key=KEY), trained.bundles["noise"], batches)
    assert any(name.startswith(where) for name in found)


def test_labels_that_stay_private_change_nothing_that_leaves(trained):
    """Another labelling gives another α and M_main, as the checker varies; the uploads are the same."""
    stage = trained.stages["noise"]
    held_out = trained.private.held_out
    other = Labelled(held_out.x, (held_out.y + 1) % 10, held_out.ids, held_out.subjects)
    uploads = [
        release_records(stage.private, stage.release, records, key=KEY) for records in (held_out, other)
    ]
    assert torch.equal(*uploads)
    assert stage.release.release_hash == trained.bundles["noise"].manifest.release_hash


def test_a_transport_that_forgets_the_deadline_is_not_waited_for(trained):
    bundle = trained.bundles["noise"]
    with ScriptedCloud(lambda number, op, tensors: None, keeps_deadlines=False) as cloud:
        method = _make(bundle)
        method.prepare(cloud, deadline_s=0.05)
        prediction = method.infer(trained.x[:2], _ids("a", "b"))
    assert (prediction.used_cloud, prediction.reason) == (False, "deadline")
    assert torch.equal(prediction.logits, prediction.extras["z_main"])


# Stored bytes, retries, budget


def test_a_repeated_query_sends_the_stored_bytes_and_is_not_debited_again(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=100.0)
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        for _ in range(3):
            method.infer(trained.x[:2], _ids("a", "b"))
    first, *others = _payloads(cloud)
    assert others == [first, first]
    assert ledger.spent("s").releases == 2


def test_retries_never_draw_new_noise(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=100.0)
    half = _half(bundle)
    with ScriptedCloud(hostile_clouds(half)["recovers"]) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        used = [method.infer(trained.x[:2], _ids("a", "b")).used_cloud for _ in range(4)]
    assert used == [False, False, True, True]
    assert len(set(_payloads(cloud))) == 1
    assert ledger.spent("s").releases == 2


def test_the_key_gives_the_same_bits_after_a_restart_and_another_key_gives_others(trained):
    bundle = trained.bundles["noise"]
    seen = []
    for key in (KEY, KEY, NoiseKey(bytes(32))):
        with ScriptedCloud(honest(_half(bundle))) as cloud:
            method = DeltaMethod(bundle, key=key)
            method.prepare(cloud)
            method.infer(trained.x[:8], _ids(*"abcdefgh"))
        seen += _payloads(cloud)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]


def test_another_id_of_the_same_record_is_a_new_release_and_debited(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=100.0)
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        method.infer(trained.x[:1], _ids("a"))
        method.infer(trained.x[:1], _ids("b"))
    first, second = _payloads(cloud)
    assert first != second
    assert ledger.spent("s").releases == 2


def test_a_spent_budget_is_a_reason_and_nothing_is_sent(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=2.0)  # one release of ε = 8 spends μ = 1.67, two 2.36
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        first = method.infer(trained.x[:1], _ids("a"))
        second = method.infer(trained.x[1:2], _ids("b"))
        stored = method.infer(trained.x[:1], _ids("a"))
    assert first.used_cloud
    assert (second.used_cloud, second.reason) == (False, "budget")
    assert second.cost.round_trips == second.cost.bytes_up == 0
    assert bool(second.logits.isfinite().all())
    assert stored.used_cloud  # what was released once costs nothing
    assert len(cloud.transcript) == 2


def test_a_refused_record_is_refused_again_though_its_bytes_are_stored(trained):
    bundle = trained.bundles["noise"]
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=InMemoryLedger(budget=1.0))
        method.prepare(cloud)
        reasons = [method.infer(trained.x[:1], _ids("a")).reason for _ in range(2)]
    assert reasons == ["budget", "budget"]
    assert cloud.transcript == []


def test_a_batch_beyond_the_budget_goes_not_at_all(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=2.0)
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        assert method.infer(trained.x[:2], _ids("a", "b")).reason == "budget"
    assert cloud.transcript == []
    assert ledger.spent("s").releases == 0


def test_the_debit_comes_before_the_first_byte(trained):
    bundle = trained.bundles["noise"]
    ledger = InMemoryLedger(budget=100.0)
    spent_when_sent = []
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        cloud.before = lambda: spent_when_sent.append(ledger.spent("s").releases)
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        method.infer(trained.x[:2], _ids("a", "b"))
        method.infer(trained.x[2:3], _ids("c"))
    assert spent_when_sent == [2, 3]


def test_without_noise_a_finite_budget_lets_nothing_out(trained):
    with ScriptedCloud(honest(_half(trained.bundles["none"]))) as cloud:
        method = _make(trained.bundles["none"], ledger=InMemoryLedger(budget=100.0))
        method.prepare(cloud)
        assert method.infer(trained.x[:1], _ids("a")).reason == "budget"
    assert cloud.transcript == []


# I2: one way out


@pytest.mark.parametrize("name", VARIANTS)
def test_only_packed_release_bits_leave(trained, name):
    bundle = trained.bundles[name]
    parts = load_private_parts(bundle)
    release = bundle.manifest.release
    assert release is not None
    releaser = Releaser(
        release,
        backbone=parts.backbone,
        decomposer=parts.decomposer,
        message=parts.message,
        key=KEY,
        memo=None,
    )
    ids = _ids(*"abcdef")
    expected = releaser.release(trained.x[:6], ids).payload
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle)
        method.prepare(cloud)
        method.infer(trained.x[:6], ids)
    (sent,) = cloud.transcript
    assert sent.op == "predict"
    ((tensor, dtype, shape, data),) = sent.tensors
    assert (tensor, dtype, shape) == ("bits", "torch.uint8", (6, release.payload_bytes))
    assert data == expected.numpy().tobytes()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_release_does_not_depend_on_the_batch_it_comes_in(trained, name):
    bundle = trained.bundles[name]
    ids = [f"r{i}" for i in range(12)]

    def payloads(groups: list[list[int]]) -> dict[int, bytes]:
        size = bundle.manifest.release.payload_bytes if bundle.manifest.release else 0
        found = {}
        with ScriptedCloud(honest(_half(bundle))) as cloud:
            method = _make(bundle, memo=InMemoryMemo())
            method.prepare(cloud)
            for group in groups:
                method.infer(trained.x[group], _ids(*[ids[i] for i in group]))
                data = _payloads(cloud)[-1]
                found.update({i: data[k * size : (k + 1) * size] for k, i in enumerate(group)})
        return found

    together = payloads([list(range(12))])
    assert together == payloads([[i] for i in range(12)])
    assert together == payloads([[11, 3, 5], [0, 1], [2, 4, 6, 7, 8, 9, 10]])


def test_a_record_in_another_layout_or_precision_is_the_same_release(trained):
    bundle = trained.bundles["noise"]
    x = trained.x[:3]
    ledger = InMemoryLedger(budget=100.0)
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle, ledger=ledger)
        method.prepare(cloud)
        for same in (x, x.double(), x.repeat_interleave(2, dim=3)[..., ::2]):
            method.infer(same, _ids("a", "b", "c"))
    assert len(set(_payloads(cloud))) == 1
    assert ledger.spent("s").releases == 3


def test_uploads_of_training_equal_those_of_inference(trained):
    """Training releases through the same function: the same record, id and key give the same bits."""
    stage, bundle = trained.stages["noise"], trained.bundles["noise"]
    records = Labelled(trained.x[:5], trained.test.y[:5], trained.test.ids[:5], trained.test.subjects[:5])
    stored = release_records(stage.private, stage.release, records, key=KEY)
    with ScriptedCloud(honest(_half(bundle))) as cloud:
        method = _make(bundle)
        method.prepare(cloud)
        method.infer(records.x, RecordIds(records.ids, records.subjects))
    assert _payloads(cloud) == [stored.numpy().tobytes()]


# I3: no gradient crosses


@pytest.mark.parametrize("name", VARIANTS)
def test_the_private_half_is_frozen_and_in_eval_mode(trained, name):
    parts = load_private_parts(trained.bundles[name])
    modules = (parts.backbone, parts.decomposer, parts.message, parts.main)
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert not any(part.training for module in modules for part in module.modules())


def test_no_gradient_reaches_or_leaves_the_private_side(trained):
    bundle = trained.bundles["none"]
    model = load_cloud_model(bundle.cloud_part)
    x = trained.x[:4].clone().requires_grad_()

    def with_gradient(number: int, op: str, tensors: Any) -> Answer:
        with torch.enable_grad():
            return Answer({"logits": model(tensors["bits"])}, 0.0, 1, 1)

    with ScriptedCloud(with_gradient) as cloud, torch.enable_grad():
        method = _make(bundle)
        method.prepare(cloud)
        prediction = method.infer(x, _ids(*"abcd"))
    assert prediction.used_cloud
    assert not cloud.requires_grad
    assert not prediction.extras["z_main"].requires_grad
    assert not prediction.logits.requires_grad


def test_the_cloud_stage_leaves_the_private_weights_alone(trained):
    """Stage 2 trains M_res alone: backbone and main model are those of stage 1, and carry no gradient."""
    for name in ("none", "noise", "principal"):
        private = trained.stages[name].private
        for module, reference in (
            (private.backbone, trained.private.backbone),
            (private.main, trained.private.main),
        ):
            assert all(
                torch.equal(a, b)
                for a, b in zip(module.state_dict().values(), reference.state_dict().values(), strict=True)
            )
            assert all(p.grad is None or not p.requires_grad for p in module.parameters())
    assert any(p.requires_grad for p in trained.stages["none"].cloud.parameters())
