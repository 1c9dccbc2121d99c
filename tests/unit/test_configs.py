"""Every YAML file in configs/ is a valid run, says how to start it, and faults of one are named."""

from pathlib import Path

import pytest
import torch

import delta
from delta.errors import ConfigError
from delta.models import resnet_small
from delta.training.config import TrainConfig
from delta.training.run_config import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
# A sweep is another kind of file: test_frontier_grid.py reads those.
FILES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("frontier-"))


def test_there_are_configurations():
    assert len(FILES) >= 9
    assert len({RunConfig.read(path).name for path in FILES}) == len(FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_configuration_is_valid_and_says_how_to_use_it(path):
    run = RunConfig.read(path)
    assert run.training.noise == run.noise
    assert f"configs/{path.name}" in path.read_text().split("noise:")[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("noise: none\nranks: 3\nseed: -1\n", ["ranks", "seed"]),
        ("rank: 3\n", ["noise"]),
        ("noise: {epsilon: 0}\n", ["epsilon"]),
        ("noise: [", ["not YAML"]),
        ("", ["noise"]),
    ],
)
def test_faults_are_named_in_one_line(tmp_path, text, words):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.read_yaml(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in [*words, "run.yaml"])


def test_an_absent_file_and_two_sources_are_refused(tmp_path):
    parts = delta.split(
        resnet_small(classes=10, in_channels=1, width=4), at="layer1", example=torch.zeros(2, 1, 32, 32)
    )
    data = delta.load_dataset("embedded", limit=100)
    with pytest.raises(ConfigError, match="cannot be read"):
        delta.train(parts, data, config=tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="not from both"):
        delta.train(parts, data, config=FILES[0], noise="none")
