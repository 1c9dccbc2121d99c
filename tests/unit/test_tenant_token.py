"""A tenant's token: drawn once, kept to its owner, and never printed."""

import hashlib
import stat

import pytest
from delta_client import TenantToken

from delta.errors import ConfigError


def test_a_token_is_drawn_once_and_read_back(tmp_path):
    path = tmp_path / "tenant.token"
    token = TenantToken.at(path)
    assert len(token.for_cloud("local")) == 32
    assert TenantToken.at(path).for_cloud("local") == token.for_cloud("local")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TenantToken.generate().for_cloud("local") != token.for_cloud("local")


def test_each_cloud_gets_a_token_of_its_own_that_tells_nothing_of_another():
    secret = bytes(range(32))
    token = TenantToken(secret)
    places = ["local", "127.0.0.1:50051", "127.0.0.1:50052", "localhost:50051", "127.0.0.1:5005", ""]
    tokens = {token.for_cloud(place) for place in places}
    assert len(tokens) == len(places)
    assert secret not in tokens
    message = (15).to_bytes(8, "big") + b"delta/tenant/v1" + (5).to_bytes(8, "big") + b"local"
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in secret.ljust(64, b"\0")) + message).digest()
    outer = hashlib.sha256(bytes(b ^ 0x5C for b in secret.ljust(64, b"\0")) + inner).digest()
    assert token.for_cloud("local") == outer  # RFC 2104


def test_a_token_is_not_printed():
    token = TenantToken(bytes(range(32)))
    for text in (repr(token), str(token), f"{token}"):
        assert text == "TenantToken(secret)"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_token_of_another_size_is_refused(tmp_path, size):
    with pytest.raises(ConfigError, match="32 bytes"):
        TenantToken(bytes(size))
    path = tmp_path / "token"
    path.write_bytes(bytes(size))
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="32 bytes"):
        TenantToken.load(path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_token_that_others_may_read_is_refused(tmp_path, mode):
    path = tmp_path / "token"
    TenantToken.generate().save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        TenantToken.at(path)


def test_an_existing_token_is_never_touched(tmp_path):
    path = tmp_path / "token"
    first = TenantToken.at(path)
    with pytest.raises(ConfigError, match="exists"):
        TenantToken.generate().save(path)
    assert TenantToken.load(path).for_cloud("local") == first.for_cloud("local")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="cannot be read"):
            TenantToken.load(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        TenantToken.at(tmp_path / "absent" / "token")
