"""The sweep file: its points, its faults, and the hash under which a point is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from delta.errors import ConfigError
from delta.frontier.cell import Cell
from delta.frontier.grid import AttackPlan, SweepConfig, change_text, chosen_points
from delta.training.run_config import RunConfig
from tests.tiny_runs import write_config

FILES = sorted((Path(__file__).parents[2] / "configs").glob("frontier-*.yaml"))


def sweep(tmp_path: Path, **fields) -> Path:
    write_config(tmp_path / "run.yaml")
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": "run.yaml", **fields}, sort_keys=False))
    return path


def points(tmp_path: Path, *changes: str, **fields):
    config, common = SweepConfig.read(sweep(tmp_path, **fields), changes=changes)
    return config.expanded(common=common)


def test_the_grid_is_a_product_that_variants_multiply_and_points_follow(tmp_path):
    found = points(
        tmp_path,
        grid={"rank": [1, 2], "noise": ["none", {"epsilon": 8}]},
        variants=[{}, {"message": "projection", "channels": 2}],
        points=[{"fusion": "sum"}],
        seeds=[3, 5],
    )
    assert [point.number for point in found] == list(range(1, 10))
    assert found[1].own == ("rank=1", "noise={epsilon: 8}")
    assert found[1].runs[0].noise.epsilon == 8
    assert [run.seed for run in found[1].runs] == [3, 5]
    assert found[4].own == ("message=projection", "channels=2", "rank=1", "noise=none")
    assert found[8].own == ("fusion=sum",)
    assert found[8].runs[0].rank == 2  # the base's


def test_points_alone_do_and_equal_points_count_once(tmp_path):
    assert len(points(tmp_path, points=[{"rank": 1}])) == 1
    same = points(tmp_path, grid={"rank": [1, 2]}, points=[{"rank": 2}, {"main.distil": False}])
    assert [point.own for point in same] == [("rank=1",), ("rank=2",), ("main.distil=false",)]


def test_changes_reach_the_sweep_or_every_run(tmp_path):
    path = sweep(tmp_path, grid={"rank": [1]}, attack={"width": 8})
    config, common = SweepConfig.read(path, changes=("attack.epochs=3", "seeds=[7]", "whole.epochs=2"))
    assert (config.attack.epochs, config.attack.width, config.seeds) == (3, 8, (7,))
    (point,) = config.expanded(common=common)
    assert point.runs[0].whole.epochs == 2
    assert point.changes == ("whole.epochs=2", "rank=1")
    assert point.own == ("rank=1",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ["nothing is varied"]),
        ({"grid": {"rank": []}}, ["grid.rank", "no values"]),
        ({"grid": {"seed": [1]}}, ["seed", "seeds decides it"]),
        ({"points": [{"device": "cuda"}]}, ["device", "--device"]),
        ({"grid": {"rank": [1]}, "variants": [{"rank": 2}]}, ["rank", "grid and in variants"]),
        ({"grid": {"rank": [1]}, "seeds": [1, 1]}, ["seeds"]),
        ({"grid": {"rank": [1]}, "attacks": {}, "epochs": 3}, ["attacks", "epochs"]),
        ({"grid": {"rank": [1]}, "attack": {"epochs": 0}}, ["attack.epochs"]),
        ({"grid": {"main..x": [1]}}, ["names no setting"]),
    ],
)
def test_faults_of_a_sweep_are_named_in_one_line(tmp_path, fields, words):
    with pytest.raises(ConfigError) as caught:
        points(tmp_path, **fields)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"ranks": [1]}, ["point 1 (ranks=1)", "ranks"]),
        ({"noise": ["none", {"epsilon": -1}]}, ["point 2 (noise={epsilon: -1})", "epsilon"]),
        ({"message": ["projection"]}, ["point 1", "channels"]),
    ],
)
def test_a_point_that_is_no_run_is_named(tmp_path, grid, words):
    with pytest.raises(ConfigError) as caught:
        points(tmp_path, grid=grid)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_base_that_is_not_there_is_refused(tmp_path):
    path = sweep(tmp_path, grid={"rank": [1]})
    (tmp_path / "run.yaml").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        SweepConfig.read(path)[0].expanded()
    with pytest.raises(ConfigError, match="--set"):
        SweepConfig.read(path, changes=("seed=3",))


@pytest.mark.parametrize(
    ("only", "numbers"), [(None, [1, 2, 3, 4]), ("2", [2]), ("4,1-2", [1, 2, 4]), ("3-3", [3])]
)
def test_only_names_points(tmp_path, only, numbers):
    found = chosen_points(points(tmp_path, grid={"rank": [1, 2, 3, 4]}), only)
    assert [point.number for point in found] == numbers


@pytest.mark.parametrize("only", ["", "0", "5", "2-9", "3-1", "a", "1,,2", "-1"])
def test_only_names_points_that_there_are(tmp_path, only):
    with pytest.raises(ConfigError, match="--only"):
        chosen_points(points(tmp_path, grid={"rank": [1, 2, 3, 4]}), only)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (5, "5"),
        ("none", "none"),
        ({"epsilon": 8}, "{epsilon: 8}"),
        ([1], "[1]"),
    ],
)
def test_a_change_is_written_as_train_takes_it(tmp_path, value, text):
    assert change_text("key", value) == f"key={text}"


def cell(**changes) -> Cell:
    fields = {"noise": "none", "rank": 2, "data": "embedded"}
    settings = {key: value for key, value in changes.items() if key not in ("attack", "data", "point")}
    return Cell(
        point=changes.get("point", 1),
        run=RunConfig.model_validate({**fields, **settings}),
        attack=changes.get("attack", AttackPlan()),
        data=changes.get("data", "d"),
    )


def test_a_hash_is_of_what_determines_the_figures():
    same = cell().identity
    assert cell(point=9, promote="always").identity == same  # of which no figure depends
    assert Cell.model_validate_json(cell().model_dump_json()).identity == same
    others = [
        cell(rank=3),
        cell(seed=1),
        cell(data="e"),
        cell(attack=AttackPlan(epochs=2)),
        cell(fusion="sum"),
    ]
    assert len({same, *(one.identity for one in others)}) == 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_sweeps_in_configs_are_valid_and_say_how_to_use_them(path):
    config, _ = SweepConfig.read(path)
    found = config.expanded()
    assert len(found) >= 4
    assert f"configs/{path.name}" in path.read_text().split("base:")[0]


def test_there_are_sweeps():
    assert {path.name for path in FILES} >= {"frontier-embedded.yaml", "frontier-cifar10.yaml"}
