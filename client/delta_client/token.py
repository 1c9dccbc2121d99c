"""A tenant's token: what makes a data set in the cloud this client's own."""

from __future__ import annotations

import hashlib
import hmac

from delta.secret_file import SecretFile

__all__ = ["TenantToken"]

_PURPOSE = b"delta/tenant/v1"


class TenantToken(SecretFile):
    """32 random bytes, made by the client, which never leave it: each cloud gets a token of its own.

    What one cloud has seen opens nothing at another, where data sets may have the same names.
    """

    __slots__ = ()

    kind = "tenant token"
    needed_by = "data sets in the cloud need it"

    def for_cloud(self, address: str) -> bytes:
        """The 32 bytes by which the cloud at an address knows this tenant; the cloud keeps their hash alone.

        Args:
            address: HOST:PORT as given by the user, since another spelling makes another tenant; or a name that
                is none, of a cloud whose port changes from run to run.
        """
        name = address.encode()
        parts = (len(_PURPOSE).to_bytes(8, "big"), _PURPOSE, len(name).to_bytes(8, "big"), name)
        return hmac.digest(self._secret, b"".join(parts), hashlib.sha256)
