"""Training Delta: the private stage, the cloud stage on stored releases, fusion and controls."""
