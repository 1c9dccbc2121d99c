"""One contract for every cloud half: declared schemas, and records that do not depend on their batch."""

from __future__ import annotations

import pytest
import torch

from delta.bench.zero_method import ZeroMethod, zero_bundle
from delta.errors import BundleError, InternalError, RequestError, UnknownMethodError
from delta.methods.schema import Operation, TensorSpec, is_predict, run_operation
from tests.toy_method import ToyMethod, toy_bundle

SIZES = {"n": 5, "d": 3}


@pytest.fixture(params=["toy", "bench-zero"])
def half(request):
    if request.param == "toy":
        return ToyMethod.cloud_half(toy_bundle().cloud_part, device=torch.device("cpu"))
    return ZeroMethod.cloud_half(zero_bundle().cloud_part, device=torch.device("cpu"))


def _inputs(operation):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, spec in operation.inputs.items():
        shape = [SIZES[size] if isinstance(size, str) else size for size in spec.shape]
        tensors[name] = (torch.rand(shape, generator=generator) * 0.01).to(spec.dtype)
    return tensors


def test_every_operation_answers_what_it_declares(half):
    for name, operation in half.operations.items():
        run_operation(half, name, _inputs(operation))


def test_records_do_not_depend_on_their_batch(half):
    for name, operation in half.operations.items():
        if not operation.batchable:
            continue
        inputs = _inputs(operation)
        whole = run_operation(half, name, inputs)
        for i in range(SIZES["n"]):
            alone = run_operation(half, name, {key: tensor[i : i + 1] for key, tensor in inputs.items()})
            for key, tensor in alone.items():
                assert torch.equal(tensor[0], whole[key][i])


def test_what_is_not_declared_is_refused(half):
    with pytest.raises(UnknownMethodError):
        run_operation(half, "no-such-operation", {})
    for name, operation in half.operations.items():
        inputs = _inputs(operation)
        with pytest.raises(RequestError):
            run_operation(half, name, {})
        with pytest.raises(RequestError):
            run_operation(half, name, {**inputs, "other": torch.zeros(1)})
        for key, tensor in inputs.items():
            with pytest.raises(RequestError):
                run_operation(half, name, {**inputs, key: tensor.to(torch.complex64)})
            with pytest.raises(RequestError):
                run_operation(half, name, {**inputs, key: tensor[None]})


def test_the_typed_prediction_is_recognised(half):
    assert is_predict(half.operations["predict"])


def test_an_output_that_was_not_declared_is_a_defect():
    spec = TensorSpec(torch.float32, ("n",))

    class Half:
        operations = {"op": Operation({"x": spec}, {"y": spec}, lambda t: {"y": t["x"].double()})}  # noqa: RUF012

    with pytest.raises(InternalError):
        run_operation(Half(), "op", {"x": torch.zeros(1)})


def test_a_target_that_the_operator_did_not_allow_is_refused():
    part = toy_bundle(target="other.module:build").cloud_part
    with pytest.raises(BundleError, match="not allowed"):
        ToyMethod.cloud_half(part, device=torch.device("cpu"))
    ToyMethod.cloud_half(part, device=torch.device("cpu"), allowed=frozenset({"other.module:build"}))
