"""Who we are and who they are: Ed25519 keys, libp2p peer ids, the key file.

A `PeerId` is the raw 32-byte Ed25519 public key; every other form (multihash, protobuf, base58)
is made from it at the border. Other key types are refused, so equal peers have equal bytes.

Source: libp2p specs `peer-ids/peer-ids.md`; docs/specs/wire.md s.1.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NewType, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from typing_extensions import override

from p2p.errors import DecodeError, P2pError

if TYPE_CHECKING:
    import random
    from pathlib import Path

PeerId = NewType("PeerId", bytes)

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_PUBLIC_KEY_PREFIX: Final = bytes.fromhex("08011220")  # protobuf: Type = Ed25519, Data of 32 bytes
_MULTIHASH_PREFIX: Final = bytes.fromhex("0024")  # identity hash of 36 bytes
_CID_PREFIX: Final = bytes.fromhex("0172")  # CIDv1, codec libp2p-key
_KEY_FILE_PREFIX: Final = bytes.fromhex("08011240")  # protobuf: Type = Ed25519, Data of 64 bytes
_MULTIHASH_BYTES: Final = 38
_KEY_FILE_BYTES: Final = 68
# 38 bytes are 52 base58 characters and 65 of base32; a longer text is no peer id.
_TEXT_CHARACTERS_MAX: Final = 100

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES: Final = {character: value for value, character in enumerate(_BASE58)}

_P: Final = 2**255 - 19
# The y coordinates of the points of order 1, 2, 4 and 8. A signature by such a "key" verifies for
# every message, so they are refused wherever a public key comes in. Source: the table in
# https://eprint.iacr.org/2020/1244 s.4.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            "little",
        ),
    }
)


class KeyFileError(P2pError):
    """The key file cannot be used.

    Args:
        message: what is wrong.
        remedy: what the person at the terminal can do about it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message} ({remedy})")
        self.remedy = remedy


class Signer(Protocol):
    """Whoever can sign as one peer."""

    @property
    def id(self) -> PeerId:
        """The peer it signs as."""
        ...

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """Signature over `domain + body`."""
        ...


class Verifier(Protocol):
    """Checks a signature; simulations put a cheaper one in its place."""

    def __call__(self, key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
        """Whether `signature` over `domain + body` is by `key`."""
        ...


class Identity:
    """A private key and the peer id it proves.

    Args:
        seed: the 32-byte Ed25519 private seed.
    """

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == KEY_BYTES, "an Ed25519 seed has 32 bytes"
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._id = PeerId(self._key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls, rng: random.Random) -> Identity:
        """A fresh identity drawn from `rng` (a CSPRNG in production)."""
        return cls(rng.randbytes(KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a known 32-byte seed."""
        return cls(seed)

    @property
    def id(self) -> PeerId:
        """Our peer id: the raw public key."""
        return self._id

    def sign(self, domain: bytes, body: bytes) -> bytes:
        """A 64-byte Ed25519 signature over `domain + body`.

        Args:
            domain: what kind of statement this is; no two kinds share a prefix.
            body: the statement.
        """
        return self._key.sign(domain + body)

    def key_file_bytes(self) -> bytes:
        """The libp2p PrivateKey protobuf, as the key file holds it."""
        return _KEY_FILE_PREFIX + self._seed + self._id

    @override
    def __repr__(self) -> str:
        return f"Identity({peer_text(self._id)})"


def check_public_key_untrusted(key: bytes) -> PeerId:
    """Accept 32 bytes as a peer's public key.

    Raises:
        DecodeError: wrong length, y >= p, or a point of small order (replication.md 3, "Keys").
    """
    if len(key) != KEY_BYTES:
        raise DecodeError("an Ed25519 public key has 32 bytes")
    y = int.from_bytes(key, "little") & ((1 << 255) - 1)
    if y >= _P:
        raise DecodeError("public key is not canonical")
    if y in _SMALL_ORDER_Y:
        raise DecodeError("public key is a point of small order")
    return PeerId(bytes(key))


# Loading a key costs a tenth of a verification, and the same members sign again and again.
@lru_cache(maxsize=1024)
def _load_public(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(check_public_key_untrusted(key))


def verify(key: bytes, domain: bytes, body: bytes, signature: bytes) -> bool:
    """Whether `signature` over `domain + body` is by `key`; False for keys we refuse."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        _load_public(bytes(key)).verify(signature, domain + body)
    except (DecodeError, InvalidSignature, ValueError):
        return False
    return True


def encode_public_key(peer: bytes) -> bytes:
    """The libp2p PublicKey protobuf, 36 bytes."""
    return _PUBLIC_KEY_PREFIX + peer


def decode_public_key_untrusted(data: bytes) -> PeerId:
    """Read a libp2p PublicKey protobuf.

    Raises:
        DecodeError: not an Ed25519 key, or a key we refuse.
    """
    if len(data) != len(_PUBLIC_KEY_PREFIX) + KEY_BYTES or data[:4] != _PUBLIC_KEY_PREFIX:
        raise DecodeError("only Ed25519 public keys are accepted")
    return check_public_key_untrusted(data[4:])


def peer_multihash(peer: bytes) -> bytes:
    """The 38 bytes that stand for `peer` in libp2p messages."""
    return _MULTIHASH_PREFIX + _PUBLIC_KEY_PREFIX + peer


def decode_multihash_untrusted(data: bytes) -> PeerId:
    """Read a peer's multihash.

    Raises:
        DecodeError: not the identity multihash of an Ed25519 key we accept.
    """
    if len(data) != _MULTIHASH_BYTES or data[:2] != _MULTIHASH_PREFIX:
        raise DecodeError("peer id is not the identity multihash of an Ed25519 key")
    return decode_public_key_untrusted(data[2:])


def peer_text(peer: bytes) -> str:
    """The text form, `12D3KooW...` (base58 of the multihash)."""
    return _base58(peer_multihash(peer))


def parse_peer_untrusted(text: str) -> PeerId:
    """Read a peer id's text: base58 of the multihash, or a CIDv1 in base32.

    Raises:
        DecodeError: neither, or not an Ed25519 peer we accept.
    """
    if len(text) > _TEXT_CHARACTERS_MAX:
        raise DecodeError("peer id text is too long")
    if text.startswith("b"):
        data = _unbase32(text[1:])
        if data[:2] != _CID_PREFIX:
            raise DecodeError("CID does not hold a libp2p key")
        return decode_multihash_untrusted(data[2:])
    return decode_multihash_untrusted(_unbase58(text))


def _base58(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _unbase58(text: str) -> bytes:
    number = 0
    for character in text:
        value = _BASE58_VALUES.get(character)
        if value is None:
            raise DecodeError("peer id text is not base58")
        number = number * 58 + value
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def _unbase32(text: str) -> bytes:
    if text != text.lower():
        raise DecodeError("a CID in base32 is lower case")
    try:
        return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise DecodeError("peer id text is not base32") from None


def load_or_create(path: Path, rng: random.Random) -> Identity:
    """Read the key file, or make one with a fresh key.

    The file is made with `O_EXCL` and mode 0600 and is on disk (file and folder synced) before this
    returns: a node that showed its id to anyone can still prove it after a power cut.

    Args:
        path: the key file; its folder must exist.
        rng: a CSPRNG in production.

    Raises:
        KeyFileError: unreadable, readable by others, owned by another user, or damaged.
    """
    try:
        return _create(path, Identity.generate(rng))
    except FileExistsError:
        return _load(path)
    except OSError as error:
        raise KeyFileError(
            f"cannot create the key file {path}: {error.strerror}",
            "check that its folder exists and that you may write there",
        ) from error


def _create(path: Path, identity: Identity) -> Identity:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)  # the umask may have taken bits away, never added any
        _write_all(descriptor, identity.key_file_bytes())
        os.fsync(descriptor)
    except OSError:
        # A half-written key would refuse every later start; nobody has seen this id yet.
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return identity


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _load(path: Path) -> Identity:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise KeyFileError(
            f"cannot read the key file {path}: {error.strerror}",
            f"give it to yourself with `chown $USER {path}`, and it must not be a link",
        ) from error
    try:
        status = os.fstat(descriptor)
        data = os.read(descriptor, _KEY_FILE_BYTES + 1)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path} is not a file", "move it away and start again")
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"the key file {path} belongs to user {status.st_uid}, not to user {os.geteuid()}",
            f"run as that user, or `chown $USER {path}`",
        )
    if status.st_mode & 0o077:
        raise KeyFileError(
            f"the key file {path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})",
            f"`chmod 600 {path}`; if others may have read it, move it away to get a new identity",
        )
    return _decode_key_file_untrusted(data, path)


def _decode_key_file_untrusted(data: bytes, path: Path) -> Identity:
    remedy = "restore it from a backup, or move it away to get a new identity"
    if len(data) != _KEY_FILE_BYTES or data[:4] != _KEY_FILE_PREFIX:
        raise KeyFileError(f"the key file {path} does not hold an Ed25519 key", remedy)
    identity = Identity(data[4 : 4 + KEY_BYTES])
    if identity.id != data[4 + KEY_BYTES :]:
        raise KeyFileError(f"the key file {path} is damaged: its halves do not match", remedy)
    return identity
