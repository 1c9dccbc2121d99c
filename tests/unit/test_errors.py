import inspect

import pytest

from delta import errors
from delta.errors import CATALOG, CloudError, DeltaError, RequestError, error_from_wire, spec_of

GRPC_STATUSES = {
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}  # fmt: skip
ALL = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, DeltaError)]


def test_every_error_has_its_own_entry():
    assert set(ALL) == set(CATALOG)


def test_codes_are_unique():
    assert len({spec.code for spec in CATALOG.values()}) == len(CATALOG)


@pytest.mark.parametrize("cls", ALL)
def test_entry_is_complete(cls):
    spec = CATALOG[cls]
    assert spec.grpc_status in GRPC_STATUSES
    assert spec.public_message
    assert 1 <= spec.exit_code <= 125


@pytest.mark.parametrize("cls", ALL)
def test_an_error_comes_back_from_the_wire_as_itself(cls):
    spec = CATALOG[cls]
    back = error_from_wire(code=spec.code, grpc_status=spec.grpc_status, message="text")
    assert type(back) is cls
    assert str(back) == "text"


@pytest.mark.parametrize("status", sorted(GRPC_STATUSES))
def test_a_foreign_status_becomes_an_error_that_the_private_side_can_fall_back_from(status):
    assert isinstance(error_from_wire(code=None, grpc_status=status, message=""), CloudError | RequestError)


def test_a_subclass_without_an_entry_takes_its_parents():
    class Special(errors.CloudOverloadedError):
        pass

    assert spec_of(Special("x")) is CATALOG[errors.CloudOverloadedError]


def test_the_tree_in_the_docstring_names_every_error():
    for cls in ALL:
        assert cls.__name__ in (errors.__doc__ or "")
