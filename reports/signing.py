"""Ed25519 signatures of a submission's manifest. Keys are PEM files, as openssl makes them:

openssl genpkey -algorithm ed25519 -out vendor.key
openssl pkey -in vendor.key -pubout -out vendor.pub
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key


class SigningError(Exception):
    """A key that cannot be used: which file, and what belongs there."""


def signer(path: Path) -> Callable[[bytes], bytes]:
    """Data -> its signature as a line of base64. Raises SigningError unless `path` is an Ed25519 private key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SigningError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "no private key in PEM without a password; make one with openssl genpkey -algorithm ed25519"
        raise SigningError(f"{path}: {what}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"{path}: not an Ed25519 key; make one with openssl genpkey -algorithm ed25519")
    return lambda data: base64.b64encode(key.sign(data)) + b"\n"


def verifier(path: Path) -> Callable[[bytes, bytes], bool]:
    """(data, signature) -> whether it is the key's. Raises SigningError unless `path` is an Ed25519 public key."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise SigningError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(f"{path}: no public key in PEM; openssl pkey -in KEY -pubout prints a key's own") from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"{path}: not an Ed25519 public key; that is what submissions are signed with")

    def holds(data: bytes, signature: bytes) -> bool:
        try:
            key.verify(base64.b64decode(signature, validate=False), data)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True

    return holds
