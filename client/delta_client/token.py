"""A tenant's token: what makes a data set in the cloud this client's own."""

from __future__ import annotations

from delta.secret_file import SecretFile

__all__ = ["TenantToken"]


class TenantToken(SecretFile):
    """32 random bytes, made by the client; the cloud keeps their hash alone."""

    __slots__ = ()

    kind = "tenant token"
    needed_by = "data sets in the cloud need it"

    @property
    def secret(self) -> bytes:
        """The bytes, for the calls to the cloud."""
        return self._secret
