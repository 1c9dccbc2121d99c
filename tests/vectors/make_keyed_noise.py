"""Known answers of the keyed noise, from the construction's description: nothing of `delta` is imported.

Run `python tests/vectors/make_keyed_noise.py > tests/vectors/keyed_noise.json`. A change of the file changes
the noise of every release: it needs a new mechanism identifier.
"""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def fields(*values: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(value)) + value for value in values)


def mac(key: bytes, *values: bytes) -> bytes:
    return hmac.new(key, fields(*values), hashlib.sha256).digest()


def vector(key: bytes, subject: str, record: str, digest: bytes, release_hash: str, mechanism: str) -> dict:
    what = (record.encode(), digest, release_hash.encode(), mechanism.encode())
    subject_key = mac(key, b"delta/subject/v1", subject.encode())
    release_key = mac(subject_key, b"delta/release/v1", *what)
    encryptor = Cipher(algorithms.AES(release_key), modes.CTR(bytes(16))).encryptor()
    return {
        "key": key.hex(),
        "subject": subject,
        "record": record,
        "digest": digest.hex(),
        "release_hash": release_hash,
        "mechanism": mechanism,
        "uniforms": [str(u) for u in struct.unpack("<8Q", encryptor.update(bytes(64)))],
        "release_id": mac(key, b"delta/release-id/v1", subject.encode(), *what).hex(),
    }


def digest_vector(values: list[float]) -> dict:
    content = struct.pack(f"<{len(values)}f", *values)
    header = fields(b"float32", f"1,2,{len(values) // 2}".encode())
    return {"values": values, "digest": hashlib.sha256(header + content).hexdigest()}


if __name__ == "__main__":
    first, other = bytes(range(32)), bytes([255] * 32)
    digest, hash_ = hashlib.sha256(b"record").digest(), hashlib.sha256(b"release").hexdigest()
    cases = [
        vector(first, "", "a", digest, hash_, "delta/one-bit/1"),
        vector(first, "subject", "a", digest, hash_, "delta/one-bit/1"),
        vector(first, "subject", "Ω-17", digest, hash_, "delta/one-bit/1"),
        vector(other, "subject", "a", digest[::-1], hash_, "delta/one-bit/1"),
    ]
    print(json.dumps({"noise": cases, "digests": [digest_vector([0.0, -0.0, 1.5, -2.25])]}, indent=1))
