"""Bring your own model: split it, see what that costs, train Delta, and predict across the boundary.

    python examples/own_model.py            # 2,000 digits, half a minute on two cores

The cloud runs as a second process. It builds its part from `own_model:build`, which its operator allows by name.
"""

import sys
from pathlib import Path

import torch
from delta_client import Client
from delta_server.launch import ServerProcess
from torch import nn

import delta
from delta.demo.experiment import beats

HERE = Path(__file__).parent


class Net(nn.Module):
    """Any PyTorch model: here with a functional call and a skip connection, which the split steps around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.second = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        x = self.third(self.second(x))
        return self.head(x.mean(dim=(2, 3)))


def build() -> nn.Module:
    """What the cloud calls to rebuild the model."""
    return Net()


def run(*, records: int = 2000, whole: int = 10, main: int = 12, cloud: int = 8) -> dict[str, float]:
    """Split, train and predict; accuracies in percent."""
    data = delta.load_dataset("embedded", limit=records)
    x = torch.zeros(2, 1, 32, 32)

    parts = delta.split(Net(), at="first", example=x, target="own_model:build")
    print(parts.plan(rank=4, main_max_macs=100_000))
    bundle = delta.train(
        parts,
        data,
        noise="none",
        rank=4,
        main={"max_macs": 100_000},
        backbone="fixed",
        whole={"epochs": whole, "batch": 32, "learning_rate": 1e-2},
        main_fit={"epochs": main, "batch": 32, "learning_rate": 1e-2},
        cloud_fit={"epochs": cloud, "batch": 32, "learning_rate": 1e-2},
    )
    folder = delta.save_bundle(bundle, Path("runs/own_model"))

    with (
        ServerProcess.start(folder, allow=["own_model:build"], env={"PYTHONPATH": str(HERE)}) as server,
        Client(bundle, cloud=server.address) as client,
    ):
        prediction = client.predict(bundle.manifest.input.preprocess(data.test.images))
    right = prediction.logits.argmax(1) == data.test.labels
    figures = {**bundle.facts.figures, "over_grpc": 100 * float(right.double().mean())}
    print(f"answered with the cloud: {prediction.used_cloud} {prediction.detail}")
    for name, value in figures.items():
        print(f"{name:>16}: {value:5.1f} %")
    alone = prediction.extras["z_main"].argmax(1) == data.test.labels
    helps = beats(int((right & ~alone).sum()), int((alone & ~right).sum()))
    print(
        "the cloud lifts its main model" if helps else "the cloud is not worth it here: no gain beyond chance"
    )
    return figures


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    run()
