"""Attacks on what leaves. They run in this process on a local copy of the mechanism and release nothing."""

from delta.attacks.decoder import Decoder, reconstruct, train_decoder
from delta.attacks.matching import MatchResult, match_candidates
from delta.attacks.metrics import psnr, ssim
from delta.attacks.report import AttackReport
from delta.attacks.settings import AttackSettings
from delta.attacks.suite import run_attacks

__all__ = [
    "AttackReport",
    "AttackSettings",
    "Decoder",
    "MatchResult",
    "match_candidates",
    "psnr",
    "reconstruct",
    "run_attacks",
    "ssim",
    "train_decoder",
]
