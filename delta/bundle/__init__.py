"""Bundles: manifest, hashes and files."""
