"""Measurements: speed, bytes, memory."""
