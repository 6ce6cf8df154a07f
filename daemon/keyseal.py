"""The device key under a passphrase: the one part of a backup that is worth stealing by itself.

`key.sealed` = magic 8, log2 of scrypt's N u8, salt 16, nonce 12, ChaCha20-Poly1305 of a MessagePack
map of file names to their bytes, the first 25 bytes authenticated with it. A guess costs 128 MiB
and about half a second. Source: docs/guides/backup.md, *The device key*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from daemon.errors import RpcError

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

MAGIC: Final = b"COVEYKEY"
LOG2_N: Final = 17
"""128 MiB a guess: daemon.md s.8."""
_R: Final = 8
_P: Final = 1
_SALT_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(MAGIC) + 1 + _SALT_BYTES
SEALED_BYTES_MAX: Final = 64 * 1024
PASSPHRASE_CHARS_MIN: Final = 8
"""Below it scrypt does not help; a floor, no advice."""

_decoder: Final = msgspec.msgpack.Decoder(dict[str, bytes])


def seal_key(files: Mapping[str, bytes], passphrase: str, rng: random.Random) -> bytes:
    """Seal small files under a passphrase.

    Args:
        files: content by name.
        passphrase: at least 8 characters.
        rng: a CSPRNG.

    Raises:
        RpcError: `invalid_params`: the passphrase is too short.
    """
    if len(passphrase) < PASSPHRASE_CHARS_MIN:
        raise RpcError(
            "invalid_params",
            f"the passphrase has fewer than {PASSPHRASE_CHARS_MIN} characters",
            remedy="Choose a longer one: it guards the device key.",
        )
    salt, nonce = rng.randbytes(_SALT_BYTES), rng.randbytes(_NONCE_BYTES)
    head = MAGIC + bytes([LOG2_N]) + salt
    cipher = ChaCha20Poly1305(_derive(passphrase, salt, LOG2_N))
    return head + nonce + cipher.encrypt(nonce, msgspec.msgpack.encode(dict(files)), head)


def open_sealed(data: bytes, passphrase: str) -> dict[str, bytes]:
    """The files of a `key.sealed`.

    Raises:
        RpcError: `locked`: another passphrase, or not what was sealed.
    """
    if not _HEAD_BYTES + _NONCE_BYTES < len(data) <= SEALED_BYTES_MAX or data[:8] != MAGIC:
        raise RpcError("locked", "this is no sealed key", remedy="Take key.sealed of the backup.")
    head, nonce = data[:_HEAD_BYTES], data[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
    # A foreign file must not choose how much memory we take.
    if data[8] != LOG2_N:
        raise RpcError("locked", "the key is sealed by another version of Covey", remedy=_NEWER)
    cipher = ChaCha20Poly1305(_derive(passphrase, head[9:], LOG2_N))
    try:
        return _decoder.decode(cipher.decrypt(nonce, data[_HEAD_BYTES + _NONCE_BYTES :], head))
    except (InvalidTag, msgspec.DecodeError, UnicodeError, RecursionError):
        raise RpcError(
            "locked", "the passphrase does not open the key", remedy="Type it again; case counts."
        ) from None


_NEWER: Final = "Restore with the version that made the backup, or a newer one."


def _derive(passphrase: str, salt: bytes, log2_n: int) -> bytes:
    kdf = Scrypt(salt=salt, length=32, n=1 << log2_n, r=_R, p=_P)
    return kdf.derive(passphrase.encode("utf-8", "surrogatepass"))
