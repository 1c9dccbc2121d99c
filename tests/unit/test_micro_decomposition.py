"""The micro-benchmark's figures are there and consistent; times themselves are never tested."""

import torch

from delta.bench.micro_decomposition import TARGETS, measure_decomposition


def test_figures():
    threads = torch.get_num_threads()
    figures = measure_decomposition(rounds=2, warmup=0)
    assert torch.get_num_threads() == threads
    assert set(TARGETS) <= set(figures)
    for name, figure in figures.items():
        if name != "memory":
            assert 0 < figure["min_ms"] <= figure["median_ms"] <= figure["max_ms"]
    for name in ("pca_path", "pca_path_channels_last"):
        assert figures[name]["over_stem_min"] <= figures[name]["over_stem"] <= figures[name]["over_stem_max"]
    # These do not depend on the machine's load.
    assert 0 < figures["memory"]["over_ir"] <= 0.5
    assert abs(figures["svd_exact"]["captured_energy"] - 1) < 5e-5
    assert 1 <= figures["svd_approximate"]["residual"] <= 1.03
