"""What the documentation shows runs: the five lines, and the example with a cloud in another process."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import delta_client
import pytest
import torch
from delta_server.launch import ServerProcess

import delta
from delta.models import resnet_small

ROOT = Path(__file__).parents[2]


def _five_lines(path: Path) -> str:
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "delta_client.Client(" in block)


@pytest.mark.parametrize("page", ["README.md", "docs/bring-your-model.md"])
def test_the_five_lines_of_the_documentation(page, tmp_path, capsys):
    lines = ast.parse(_five_lines(ROOT / page)).body
    assert len(lines) == 5
    data = delta.load_dataset("embedded", limit=200)
    torch.manual_seed(0)
    names = {
        "delta": delta,
        "delta_client": delta_client,
        "print": print,
        "model": resnet_small(classes=10, in_channels=1, width=4),
        "x": torch.zeros(2, 1, 32, 32),
        "data": data,
    }
    source = [ast.unparse(line) for line in lines]
    exec("\n".join(source[:3]), names)
    assert "private MACs" in capsys.readouterr().out
    folder = delta.save_bundle(names["bundle"], tmp_path / "bundle")
    with ServerProcess.start(folder) as server:
        exec("\n".join(source[3:]).replace("127.0.0.1:50051", server.address), names)
        names["client"].close()
    assert names["prediction"].used_cloud, names["prediction"].detail
    assert names["prediction"].logits.shape == (2, 10)


def test_the_example_with_a_model_of_ones_own(tmp_path):
    script = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import own_model; "
        "print('FIGURES ' + json.dumps(own_model.run(records=300, whole=2, main=2, cloud=1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "examples")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, done.stderr
    assert "answered with the cloud: True" in done.stdout
    figures = json.loads(done.stdout.split("FIGURES ")[1])
    assert figures["over_grpc"] == pytest.approx(figures["delta"], abs=1e-6)
    assert set(figures) >= {"private_only", "main_alone", "delta", "random_bits", "noiseless_bits"}
