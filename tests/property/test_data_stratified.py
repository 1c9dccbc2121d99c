"""Laws of the stratified choice, against the definition."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from delta.data.records import stratified


@given(data=st.data(), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), seed=st.integers(0, 2**40))
def test_every_class_gets_its_share(data, sizes, seed):
    labels = torch.cat([torch.full((size,), 3 * label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels))]
    count = data.draw(st.integers(len(sizes), len(labels)))
    chosen = stratified(labels, count, seed=seed, what="data")
    assert len(set(chosen.tolist())) == len(chosen) == count
    got = labels[chosen].bincount(minlength=3 * len(sizes))[::3].tolist()
    shares = [size * count / len(labels) for size in sizes]
    assert all(1 <= n <= size for n, size in zip(got, sizes, strict=True))
    if min(shares) >= 1:
        assert all(abs(n - share) < 1 for n, share in zip(got, shares, strict=True))
    assert torch.equal(chosen, stratified(labels, count, seed=seed, what="data"))
