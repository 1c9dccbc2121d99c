"""Two processes train one model through gloo, with the code that trains it alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import nn

from delta.errors import ConfigError
from delta.training.config import FitConfig
from delta.training.fit import fit
from delta.training.world import ALONE, World
from tests.distributed_target import STEPS, train

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def _run(out: Path, *arguments: str) -> tuple[int, str]:
    """Two processes on this machine, which meet at a port of 127.0.0.1 that the system chooses."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    ended = subprocess.run(
        [*command, "-m", "tests.distributed_target", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    return ended.returncode, ended.stdout


def _ranks(out: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    status, output = _run(out)
    assert status == 0, output
    return out


def test_two_processes_train_one_model(trained_by_two):
    ranks = _ranks(trained_by_two, "whole")
    assert [rank["size"] for rank in ranks] == [2, 2]
    assert ranks[0]["weights"] == ranks[1]["weights"]  # batch normalisation's statistics included
    assert ranks[0]["losses"] != ranks[1]["losses"]  # each had its own records
    for rank in ranks:
        assert sum(rank["losses"][-8:]) < 0.6 * sum(rank["losses"][:8])
    assert ranks[0]["accuracy"] > 0.9
    assert [rank["told"] for rank in ranks] == [list(range(1, STEPS + 1)), []]  # rank 0 alone reports


def test_without_batch_normalisation_two_processes_end_where_one_does(trained_by_two):
    with torch.random.fork_rng():
        alone = train(ALONE, plain=True)
    ranks = _ranks(trained_by_two, "plain")
    assert ranks[0]["weights"] == ranks[1]["weights"]
    found, reference = (load(bytes.fromhex(r["weights"])) for r in (ranks[0], alone))
    for name in reference:
        torch.testing.assert_close(found[name], reference[name], rtol=1e-3, atol=1e-4)


def test_two_processes_go_on_from_a_checkpoint_to_the_same_weights(trained_by_two):
    whole, cut = _ranks(trained_by_two, "whole"), _ranks(trained_by_two, "cut")
    assert cut[0]["told"] == list(range(21, STEPS + 1))
    assert [rank["weights"] for rank in cut] == [rank["weights"] for rank in whole]


@pytest.mark.slow
def test_when_one_process_is_killed_all_end_and_start_again_from_a_checkpoint(trained_by_two, tmp_path):
    status, output = _run(tmp_path, "--only", "whole", "--die", "33")
    assert status != 0
    assert "SIGKILL" in output
    status, output = _run(tmp_path, "--only", "whole")
    assert status == 0, output
    killed = _ranks(tmp_path, "whole")
    assert killed[0]["told"] == list(range(31, STEPS + 1))
    assert [r["weights"] for r in killed] == [r["weights"] for r in _ranks(trained_by_two, "whole")]


# The world


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with World.from_environment(CPU) as world:
        assert (world.rank, world.size, world.device) == (0, 1, CPU)
        assert world.leads


def test_an_incomplete_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="start the processes with torchrun"), World.from_environment(CPU):
        pass


def test_parts_share_a_batch_out_evenly():
    index = torch.arange(11)
    parts = [World(rank, 3, CPU).part(index) for rank in range(3)]
    assert {len(part) for part in parts} == {3}
    assert sorted(torch.cat(parts).tolist()) == list(range(9))
    assert torch.equal(ALONE.part(index), index)


def test_a_batch_too_small_for_its_processes_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="a batch of 3 for 2 processes: each needs 2 records"):
        fit(
            model,
            lambda net, index: net(torch.ones(len(index), 2)),
            lambda logits, index: logits.sum(),
            records=8,
            config=FitConfig(epochs=1, batch=3),
            generator=torch.Generator(),
            world=World(0, 2, CPU),
        )
