"""Choosing: the Pareto set against brute force, and every way in which limits can and cannot be kept."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta.errors import ConfigError, InputError
from delta.frontier.choice_text import choice_json, choice_lines, train_command
from delta.frontier.choose import choose, limits_of
from delta.frontier.option import AXES, Option, options_of, read_frontier
from delta.frontier.pareto import dominated_by


def point(number: int, accuracy: float, ms: float | None, ssim: float | None, **figures) -> dict:
    return {
        "point": number,
        "changes": [f"rank={number}"],
        "seeds": [4],
        "settings": {"rank": number},
        "accuracy": {"delta": accuracy},
        "private_ms": ms,
        "ssim": ssim,
        "matching_top1": 50.0,
        "label_leak": 60.0,
        "bytes_per_record": 128.0,
        "epsilon": None,
        "private_macs": 1_000_000,
        **figures,
    }


def rival(method: str, accuracy: float, ms: float, macs: int = 1_000_000) -> dict:
    return {"method": method, "accuracy": accuracy, "private_ms": ms, "private_macs": macs, "reads": "image"}


POINTS = [
    point(1, 80.0, 10.0, 0.6, matching_top1=100.0),
    point(2, 78.0, 11.0, 0.3, label_leak=45.0),
    point(3, 70.0, 10.0, 0.2, epsilon=8.0, matching_top1=1.0, label_leak=12.0),
    point(4, 85.0, 25.0, 0.9, bytes_per_record=256.0),
]
RIVALS = [rival("main-only", 76.0, 9.0), rival("private-only", 90.0, 280.0, 500_000_000)]
FRONTIER = {"kind": "frontier", "sweep": {"base": "a b.yaml"}, "points": POINTS, "baselines": RIVALS}


def pick(frontier=FRONTIER, **limits):
    return choose(options_of(frontier), limits_of(limits))


def said(frontier=FRONTIER, **limits) -> str:
    return "\n".join(choice_lines(pick(frontier, **limits), frontier))


figure = st.one_of(st.none(), st.integers(0, 3).map(float))
options = st.lists(
    st.builds(
        lambda method, values: Option(
            method=method,
            name="x",
            epsilon=None,
            private_macs=None,
            source={},
            **dict(zip([axis.field for axis in AXES], values, strict=True)),
        ),
        st.sampled_from(["delta", "main-only"]),
        st.tuples(*[figure] * len(AXES)),
    ),
    max_size=12,
)


@given(options)
def test_the_pareto_set_is_that_of_brute_force(found):
    def key(option: Option) -> list[float]:
        values = [getattr(option, axis.field) for axis in AXES]
        worst = [(-math.inf if axis.higher else math.inf) for axis in AXES]
        filled = [bad if value is None else value for value, bad in zip(values, worst, strict=True)]
        return [value if axis.higher else -value for value, axis in zip(filled, AXES, strict=True)]

    for option, better in zip(found, dominated_by(found), strict=True):
        mine = key(option)
        beaten = [
            other
            for other in found
            if all(a >= b for a, b in zip(key(other), mine, strict=True)) and key(other) != mine
        ]
        assert (better is None) == (not beaten)
        assert better is None or better in beaten


def test_a_point_that_main_only_dominates_is_not_in_the_set_and_says_by_whom():
    found = options_of({**FRONTIER, "points": [*POINTS, point(5, 75.0, 12.0, 0.1)]})
    better = dominated_by(found)
    assert better[4].name == "main-only of 1.00 M MACs"
    assert [one is None for one in better] == [True, True, False, True, False, True, True]


def test_the_cheapest_point_is_named_with_its_command():
    choice = pick(min_accuracy=77.0, max_ssim=0.35, max_private_ms=20.0)
    assert choice.chosen.name == "point 2"
    text = said(min_accuracy=77.0, max_ssim=0.35, max_private_ms=20.0)
    assert text.startswith("point 2 is the cheapest")
    assert "delta train --config 'a b.yaml' --set rank=2 --seed 4" in text
    assert "No model without a cloud keeps every limit." in text
    assert "no claim" in text
    assert choice_json(choice, FRONTIER)["chosen"]["epsilon"] is None
    assert "private" not in text.replace("private time", "").replace("private MACs", "")


def test_of_equal_prices_the_more_accurate_one_is_chosen():
    assert (
        pick(min_accuracy=65.0, max_ssim=0.7, max_matching=100.0, max_private_ms=10.0).point.name == "point 1"
    )


def test_a_model_without_a_cloud_is_named_first():
    choice = pick(min_accuracy=70.0, max_ssim=0.35)
    assert (choice.chosen.method, choice.point.name) == ("main-only", "point 3")
    first, *rest = choice_lines(choice, FRONTIER)
    assert first.startswith("main-only of 1.00 M MACs does: no cloud, nothing leaves.")
    assert any("--set rank=3" in line for line in rest)


def test_a_model_without_a_cloud_that_is_dearer_and_no_worse_is_told_first():
    frontier = {**FRONTIER, "baselines": [rival("main-only", 79.0, 12.0)]}
    choice = pick(frontier, min_accuracy=77.0, max_ssim=0.35)
    assert choice.chosen.name == "point 2"
    lines = choice_lines(choice, frontier)
    assert lines[0].startswith("Consider main-only of 1.00 M MACs first")
    assert lines[1].startswith("point 2 is the cheapest")


def test_the_whole_model_alone_may_be_all_that_is_left():
    choice = pick(min_accuracy=88.0)
    assert (choice.chosen.method, choice.point) == ("private-only", None)
    assert "whole model" in said(min_accuracy=88.0)


def test_an_epsilon_is_kept_by_noise_and_by_what_releases_nothing():
    assert pick(max_epsilon=8.0, min_accuracy=60.0, max_private_ms=50.0).point.name == "point 3"
    assert pick(max_epsilon=7.9, min_accuracy=60.0, max_private_ms=50.0).point is None


def test_what_cannot_be_kept_is_told_with_how_far_it_is():
    choice = pick(min_accuracy=82.0, max_ssim=0.35, max_private_ms=20.0)
    assert choice.chosen is None
    by_name = {miss.limit.name: miss for miss in choice.misses}
    assert (by_name["min_accuracy"].value, by_name["min_accuracy"].gap) == (78.0, 4.0)
    assert by_name["min_accuracy"].best.name == "point 2"
    assert by_name["max_ssim"].value is None  # nothing reaches 82 % in 20 ms at all
    assert (by_name["max_private_ms"].value, by_name["max_private_ms"].gap) == (280.0, 260.0)
    assert [[limit.name for limit in some] for some in choice.conflicts] == [
        ["min_accuracy", "max_private_ms"]
    ]
    text = said(min_accuracy=82.0, max_ssim=0.35, max_private_ms=20.0)
    assert (
        "--min-accuracy 82: with all others kept the highest accuracy is 78.0 % (point 2), 4.0 percentage"
        in text
    )
    assert "--max-ssim 0.35: nothing keeps the other limits" in text
    assert "--min-accuracy 82 and --max-private-ms 20 exclude each other" in text


def test_a_limit_that_is_out_of_reach_by_itself():
    choice = pick(min_accuracy=95.0, max_ssim=0.5)
    assert [[limit.name for limit in some] for some in choice.conflicts] == [["min_accuracy"]]
    assert "--min-accuracy 95 is out of reach by itself." in said(min_accuracy=95.0, max_ssim=0.5)


def test_what_was_not_measured_keeps_no_limit():
    frontier = {**FRONTIER, "points": [point(1, 80.0, None, None)], "baselines": []}
    assert pick(frontier, max_ssim=1.0).chosen is None
    assert "was not measured for it" in said(frontier, max_ssim=1.0)
    assert "has no finite ε" in said(frontier, max_epsilon=1.0)
    assert "was not measured for it" in said(frontier, max_private_ms=1.0)


def test_every_refusal_is_right_against_brute_force():
    values = {"min_accuracy": 79.0, "max_ssim": 0.35, "max_private_ms": 10.5, "max_label_leak": 50.0}
    found = options_of({**FRONTIER, "baselines": []})
    for size in range(1, 5):
        for names in itertools.combinations(values, size):
            limits = limits_of({name: values[name] for name in names})
            choice = choose(found, limits)
            kept = [one for one in found if all(limit.kept(one) for limit in limits)]
            assert (choice.chosen is None) == (not kept)
            for some in choice.conflicts:
                assert not [one for one in found if all(limit.kept(one) for limit in some)]
                for fewer in itertools.combinations(some, len(some) - 1):
                    assert [one for one in found if all(limit.kept(one) for limit in fewer)]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_ssim": 1.5},
        {"max_ssim": -0.1},
        {"min_accuracy": 101.0},
        {"max_matching": math.nan},
        {"max_private_ms": -1.0},
        {"max_bytes": -1.0},
    ],
)
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ConfigError) as caught:
        limits_of(limits)
    assert "\n" not in str(caught.value)


def test_a_frontier_without_points_and_files_of_others_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no measured point"):
        pick({**FRONTIER, "points": [], "baselines": []}, max_ssim=0.5)
    with pytest.raises(InputError, match="run it again"):
        options_of({"points": [{"point": 1}], "baselines": []})
    path = tmp_path / "x.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_frontier(path)
    for text, word in (("{", "not JSON"), ("[]", "no frontier"), ('{"kind": "train"}', "'train'")):
        path.write_text(text)
        with pytest.raises(InputError, match=word):
            read_frontier(path)


def test_a_command_survives_without_a_sweep():
    assert train_command(options_of(FRONTIER)[0], {}).startswith("delta train --config CONFIG.yaml")
