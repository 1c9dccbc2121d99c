"""A user's own model, its weights and data, as files in a folder; and a configuration that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from tests.tiny_runs import settings

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.layer2(self.layer1(x)).mean((2, 3)))
"""
RECORD = """
import torch


def build():
    made = torch.Generator().manual_seed(0)
    images = torch.rand(100, 1, 16, 16, generator=made)
    records = [(f"r{i}", f"person-{i % 50}", image, "odd" if i % 2 else "even") for i, image in enumerate(images)]
    return records[:80], records[80:]


def unlabelled():
    train, test = build()
    return [*train, ("x", "", train[0][2], None)], test


def unknown():
    train, test = build()
    return train, [*test, ("x", "", train[0][2], "neither")]
"""


def make_home(folder: Path) -> Path:
    """Put model, weights and data there."""
    (folder / "mymodel.py").write_text(MODEL)
    (folder / "mydata.py").write_text(RECORD)
    save_weights(folder / "w.safetensors", seed=5)
    return folder


def save_weights(path: Path, *, seed: int) -> None:
    """Seeded weights of the model."""
    names: dict[str, Any] = {}
    exec(MODEL, names)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_file(names["Net"]().state_dict(), path)


def write_own_config(path: Path, home: Path, *, build: str = "build", **changes: Any) -> Path:
    """A configuration file of the user's model and of what `build` of their data module returns."""
    model = {"target": "mymodel:Net", "weights": str(home / "w.safetensors"), "split_at": "layer2"}
    found = settings(model=model, data={"target": f"mydata:{build}"}, backbone="model", **changes)
    del found["whole"]
    path.write_text(yaml.safe_dump(found))
    return path
