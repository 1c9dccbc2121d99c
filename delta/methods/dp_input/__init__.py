"""The method `dp-input`: clipped records with calibrated Gaussian noise go to a whole model in the cloud."""

from delta.methods.dp_input.method import DpInput
from delta.methods.dp_input.noise import InputNoise, noise_of, privacy_claim

__all__ = ["DpInput", "InputNoise", "noise_of", "privacy_claim"]
