"""The method `he`: inference on encrypted records, with TenSEAL's CKKS."""

from delta.methods.he.method import Encrypted

__all__ = ["Encrypted"]
