"""Labels and flags are packed without loss, into the fewest bytes, in one spelling only."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from delta.errors import RequestError
from delta.training.spec import label_bits
from delta.wire.training import pack_flags, pack_labels, unpack_flags, unpack_labels

CLASSES = st.one_of(st.integers(2, 300), st.sampled_from([1000, 1024, 1025, 65_535, 65_536]))


@st.composite
def _labels(draw):
    classes = draw(CLASSES)
    return classes, draw(st.lists(st.integers(0, classes - 1), max_size=70))


@settings(deadline=None)
@given(_labels())
def test_labels_come_back_from_the_fewest_bytes(case):
    classes, labels = case
    data = pack_labels(torch.tensor(labels, dtype=torch.int64), classes=classes)
    assert len(data) == -(-len(labels) * label_bits(classes) // 8)
    assert unpack_labels(data, count=len(labels), classes=classes).tolist() == labels
    text = "".join(f"{label:0{label_bits(classes)}b}" for label in labels)
    assert "".join(f"{byte:08b}" for byte in data).startswith(text)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=70))
def test_flags_come_back(flags):
    data = pack_flags(torch.tensor(flags, dtype=torch.bool))
    assert len(data) == -(-len(flags) // 8)
    assert unpack_flags(data, count=len(flags)).tolist() == flags


@settings(deadline=None)
@given(CLASSES, st.integers(0, 20), st.binary(max_size=40))
def test_other_bytes_are_refused_or_are_the_one_spelling_of_what_they_say(classes, count, data):
    try:
        labels = unpack_labels(data, count=count, classes=classes)
    except RequestError:
        return
    assert pack_labels(labels, classes=classes) == data


@settings(deadline=None)
@given(_labels(), st.data())
def test_a_length_that_does_not_fit_is_refused(case, data):
    classes, labels = case
    packed = pack_labels(torch.tensor(labels, dtype=torch.int64), classes=classes)
    other = data.draw(st.binary(max_size=len(packed) + 3).filter(lambda raw: len(raw) != len(packed)))
    with pytest.raises(RequestError):
        unpack_labels(other, count=len(labels), classes=classes)
