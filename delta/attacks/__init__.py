"""Attacks on what leaves. They run in this process on a local copy of the mechanism and release nothing."""

from delta.attacks.decoder import Decoder, reconstruct, train_decoder
from delta.attacks.matching import MatchResult, match_candidates
from delta.attacks.metrics import psnr, ssim

__all__ = ["Decoder", "MatchResult", "match_candidates", "psnr", "reconstruct", "ssim", "train_decoder"]
