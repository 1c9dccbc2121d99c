"""The Method contract, over every registered method: a new one adds a case and nothing else."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

import tests.toy_method as toy
from delta.bundle.store import Bundle, serialise_weights
from delta.errors import CloudError, InputError, TrainingUnsupportedError
from delta.methods.base import COST_FIELDS, Method, Prediction, RecordIds
from delta.methods.registry import method_class, method_names
from delta.methods.schema import CloudHalf, Operation
from delta.transport.inprocess import InProcessTransport
from tests.clouds import Recorded, ScriptedCloud, honest, hostile_clouds, spoilt
from tests.method_cases import CASES, ONE_A_METHOD, Case, case_of
from tests.non_interference import interferences
from tests.trained import Trained

DEADLINE_S = 0.05
CANARY = 0.62518373
HOSTILE = tuple(hostile_clouds(toy.ToyHalf(torch.tensor(1.0), payload_bytes=1, classes=1)))


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, trained: Trained) -> Case:
    return case_of(request.param, trained)


@pytest.fixture(params=ONE_A_METHOD)
def one_a_method(request: pytest.FixtureRequest, trained: Trained) -> Case:
    return case_of(request.param, trained)


def _check(prediction: Prediction, case: Case, count: int, *, sent: int | None) -> None:
    """What holds for every prediction, whatever the cloud did."""
    assert prediction.logits.shape == (count, len(case.bundle.manifest.class_names))
    assert prediction.logits.dtype == torch.float32
    assert not prediction.logits.requires_grad
    assert bool(prediction.logits.isfinite().all())
    cost = prediction.cost.to_json()
    assert set(cost) == set(COST_FIELDS)
    assert all(math.isfinite(value) and value >= 0 for value in cost.values())
    if sent is not None:  # requests that are under way together are one round trip
        assert prediction.cost.round_trips <= sent
        assert (prediction.cost.round_trips > 0) == (sent > 0)
    assert prediction.used_cloud == (prediction.reason == "")
    assert " " not in prediction.reason
    assert "\n" not in prediction.detail


def test_every_method_of_the_library_has_a_case(trained):
    covered = {case_of(name, trained).bundle.manifest.method for name in ONE_A_METHOD}
    ours = {name for name in method_names() if method_class(name).__module__.startswith("delta.methods.")}
    assert ours <= covered
    assert "toy" in covered


def _close(found: Tensor, expected: Tensor, case: Case) -> None:
    torch.testing.assert_close(found, expected, rtol=case.tolerance, atol=case.tolerance)


@pytest.mark.parametrize("count", [1, 4])
def test_logits_and_costs(case, count):
    with Recorded(InProcessTransport(case.half())) as transport:
        method = case.make()
        method.prepare(transport, deadline_s=case.deadline_s)
        opening = len(transport.transcript)
        prediction = method.infer(case.records[:count], case.ids(count))
    _check(prediction, case, count, sent=len(transport.transcript) - opening)
    offloads = method.facts.offloads
    assert prediction.used_cloud == offloads
    assert (prediction.cost.bytes_up > 0) == offloads
    assert (prediction.cost.bytes_down > 0) == offloads
    assert prediction.cost.cloud_macs > 0 or not offloads or case.bundle.manifest.method == "toy"


def test_the_same_seed_key_and_records_give_the_same_answer(case):
    answers, transcripts = [], []
    for _ in range(2):
        with Recorded(InProcessTransport(case.half())) as transport:
            method = case.make()
            method.prepare(transport, deadline_s=case.deadline_s)
            answers.append(method.infer(case.records, case.ids(4)).logits)
            transcripts.append(transport.transcript)
    _close(*answers, case)
    if "I1" in method.facts.keeps:  # what leaves under a fresh pad or a fresh encryption differs each time
        assert transcripts[0] == transcripts[1]


def test_a_record_alone_gets_the_answer_that_it_gets_in_a_batch(case):
    method = case.make()
    together = _answer(case, method, slice(None))
    alone = [_answer(case, method, slice(i, i + 1)) for i in range(len(case.records))]
    tolerance = max(1e-4, case.tolerance)
    torch.testing.assert_close(torch.cat(alone), together, rtol=tolerance, atol=tolerance)


def _answer(case: Case, method: Method, which: slice) -> Tensor:
    """Of the honest cloud."""
    ids = case.ids(4)
    with InProcessTransport(case.half()) as transport:
        method.prepare(transport, deadline_s=case.deadline_s)
        prediction = method.infer(case.records[which], RecordIds(ids.records[which], ids.subjects[which]))
    assert prediction.used_cloud == method.facts.offloads
    return prediction.logits


def test_without_a_cloud_there_is_a_result_and_a_reason_or_an_error(case):
    method = case.make()
    method.prepare(None)
    if not method.facts.falls_back:
        with pytest.raises(CloudError, match="no cloud"):
            method.infer(case.records, case.ids(4))
        return
    prediction = method.infer(case.records, case.ids(4))
    _check(prediction, case, 4, sent=0)
    assert prediction.reason == "no-cloud"
    assert (prediction.cost.bytes_up, prediction.cost.bytes_down) == (0, 0)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_cloud_can_break_a_prediction(one_a_method, name):
    case = one_a_method
    with ScriptedCloud(hostile_clouds(case.half())[name]) as cloud:
        method = case.make()
        method.prepare(cloud, deadline_s=DEADLINE_S)
        for _ in range(2):
            before = len(cloud.transcript)
            try:
                prediction = method.infer(case.records, case.ids(4))
            except CloudError:
                # The contract allows it where the private side has no model of its own; it forbids all others.
                assert not method.facts.falls_back
                continue
            _check(prediction, case, 4, sent=len(cloud.transcript) - before)


class _Breaking:
    """A cloud half that breaks inside its own process, in a way that quotes what it was sent."""

    def __init__(self, inner: CloudHalf, how: str) -> None:
        self.gate = threading.Event()
        self._how = how
        self.operations: Mapping[str, Operation] = {
            name: Operation(op.inputs, op.outputs, self._broken(op), op.batchable)
            for name, op in inner.operations.items()
        }

    def _broken(self, operation: Operation) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]:
        def run(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            if self._how == "raises":
                raise ValueError(f"bits {[t.tolist() for t in tensors.values()]}, canary {CANARY}")
            if self._how == "hangs":
                self.gate.wait(10)
            outputs = operation.run(tensors)
            if self._how == "wrong shape":
                return {name: t[..., :-1] for name, t in outputs.items()}
            if self._how == "wrong names":
                return {f"{name}-canary": t for name, t in outputs.items()}
            return {name: spoilt(t, torch.nan) for name, t in outputs.items()}

        return run


@pytest.mark.parametrize("how", ["raises", "hangs", "wrong shape", "wrong names", "NaN"])
def test_a_breaking_cloud_half_gives_a_reason_and_tells_no_private_value(one_a_method, how, caplog, capfd):
    case = one_a_method
    records = case.records.clone()
    records[:, :, 0, 0] = CANARY
    half = _Breaking(case.half(), how)
    texts = []
    with caplog.at_level(logging.DEBUG), InProcessTransport(half) as transport:
        method = case.make()
        method.prepare(transport, deadline_s=0.2)
        try:
            prediction = method.infer(records, RecordIds(["canary-record"] * 4, ["canary-subject"] * 4))
        except CloudError as error:
            assert not method.facts.falls_back
            texts.append(str(error))
        else:
            _check(prediction, case, 4, sent=prediction.cost.round_trips)
            assert not prediction.used_cloud
            texts += [prediction.reason, prediction.detail]
        half.gate.set()
    captured = capfd.readouterr()
    texts += [caplog.text, captured.out, captured.err]
    text = "\n".join(texts)
    assert "canary" not in text
    assert f"{CANARY}"[:6] not in text
    assert "[" not in text.replace("[n", "")  # no tensor, no list


def test_what_it_declares_of_non_interference_is_true(one_a_method):
    case = one_a_method
    batches = [
        (case.records[:2], case.ids(2)),
        (case.records[2:], RecordIds(["c", "d"], ["s", "t"])),
        (case.records[:2], case.ids(2)),
    ]
    found = interferences(case.make, case.bundle, batches)
    if "I1" in case.make().facts.keeps:
        assert found == []
    else:
        assert found != []


def test_what_it_declares_of_gradients_is_true(case):
    if "I3" not in case.make().facts.keeps:
        pytest.skip("the method gives I3 up, and says so")
    with ScriptedCloud(honest(case.half())) as cloud:
        method = case.make()
        method.prepare(cloud)
        with torch.enable_grad():
            prediction = method.infer(case.records.clone().requires_grad_(), case.ids(4))
    assert not cloud.requires_grad
    assert not prediction.logits.requires_grad


def test_it_trains_or_says_why_not(case):
    method = case.make()
    labels = torch.zeros(4, dtype=torch.int64)
    if method.facts.trains:
        with InProcessTransport(case.half()) as transport:
            method.prepare(transport, deadline_s=case.deadline_s)
            before = method.trained()
            step = method.train_step(case.records, labels, case.ids(4))
            after = method.trained()
        assert math.isfinite(step.loss)
        costs = step.cost.to_json()
        assert all(math.isfinite(value) and value >= 0 for value in costs.values())
        assert _weights(before) != _weights(after)
        again = Case(after, case.records, case.options, case.tolerance, case.deadline_s)
        assert bool(_answer(again, again.make(), slice(None)).isfinite().all())
    else:
        with pytest.raises(TrainingUnsupportedError, match="train"):
            method.train_step(case.records, labels, case.ids(4))


def _weights(bundle: Bundle) -> bytes:
    return serialise_weights({**bundle.private, **{f"cloud {name}": t for name, t in bundle.cloud.items()}})


def _bad_records(x: Tensor) -> dict[str, Tensor]:
    spoiled = {}
    for name, value in (("NaN", torch.nan), ("infinite", torch.inf), ("minus infinite", -torch.inf)):
        spoiled[name] = x.clone()
        spoiled[name][-1, 0, 0, -1] = value
    return {
        "no batch": x[0],
        "empty": x[:0],
        "more channels": torch.cat([x, x], dim=1),
        "wider": torch.cat([x, x], dim=3),
        "flat": x.flatten(1),
        **spoiled,
    }


@pytest.mark.parametrize("name", _bad_records(torch.zeros(2, 1, 1, 2)))
def test_records_that_do_not_fit_are_refused_and_nothing_is_sent(case, name):
    with ScriptedCloud(honest(case.half())) as cloud:
        method = case.make()
        method.prepare(cloud)
        with pytest.raises(InputError) as caught:
            method.infer(_bad_records(case.records)[name], RecordIds())
    assert "\n" not in str(caught.value)
    assert cloud.transcript == []


@pytest.mark.parametrize(
    "other",
    [
        lambda x: x.double(),
        lambda x: x.bfloat16(),
        lambda x: x.half(),
        lambda x: x.to(torch.int64),
        lambda x: x > 0,
        lambda x: x.to(torch.complex64),
        lambda x: x.to_sparse(),
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
        lambda x: torch.zeros_like(x),
        lambda x: x * 1e30,
    ],
)
def test_records_of_another_kind_are_taken_or_refused(one_a_method, other):
    case = one_a_method
    with InProcessTransport(case.half()) as transport:
        method = case.make()
        method.prepare(transport)
        try:
            prediction = method.infer(other(case.records), case.ids(4))
        except InputError:
            return
        _check(prediction, case, 4, sent=prediction.cost.round_trips)


def test_a_method_describes_itself(case):
    facts = case.make().facts
    assert facts.name == case.bundle.manifest.method
    assert facts.summary
    assert "\n" not in facts.summary
    assert facts.keeps <= {"I1", "I2", "I3"}
    assert facts.rests_on
