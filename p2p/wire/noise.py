"""Noise XX as libp2p uses it: who are you, and from now on nobody else reads along.

Theory of operation
-------------------
`Noise_XX_25519_ChaChaPoly_SHA256` with an empty prologue. Three messages:

    1  initiator -> responder   e
    2  responder -> initiator   e, ee, s, es, payload
    3  initiator -> responder   s, se, payload

The Noise static keys are fresh for each connection. Who a peer *is* comes from the payload: its
Ed25519 identity key and a signature by it over `noise-libp2p-static-key:` + its Noise static key.
The initiator verifies message 2 before it sends message 3, so a wrong responder never learns who
called. After message 3 each direction has its own key and a counter that starts at 0.

What a hostile peer may try, and what stops it: a point of low order (the exchange raises, we
close), a foreign key type or a small-order identity key (refused by `p2p.identity`), a payload
signed for another static key (signature fails), our own messages reflected (our own id is refused),
length bombs (a message has at most 4,096 bytes during the handshake, 65,535 later). Every failure
is silent: the caller closes without an answer.

Bytes come in any cut: `NoiseHandshake.receive` and `Opener.receive` keep partial messages.
The keys are arguments: this file draws no random numbers.
Source: https://noiseprotocol.org/noise.html rev. 34; libp2p specs `noise/README.md`;
docs/specs/wire.md s.4.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from p2p.errors import AuthError, DecodeError, ProtocolError, UsageError
from p2p.identity import decode_public_key_untrusted, encode_public_key, verify
from p2p.limits import NOISE_HANDSHAKE_BYTES_MAX, NOISE_PLAINTEXT_BYTES_MAX
from p2p.wire.protobuf import decode_message_untrusted, encode_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from p2p.identity import PeerId, Signer

PROTOCOL_NAME: Final = b"Noise_XX_25519_ChaChaPoly_SHA256"
SIGNATURE_DOMAIN: Final = b"noise-libp2p-static-key:"
TAG_BYTES: Final = 16
KEY_BYTES: Final = 32

_MESSAGE_1_BYTES: Final = KEY_BYTES
_MESSAGE_2_BYTES_MIN: Final = KEY_BYTES + KEY_BYTES + TAG_BYTES + TAG_BYTES
_MESSAGE_3_BYTES_MIN: Final = KEY_BYTES + TAG_BYTES + TAG_BYTES
_PAYLOAD_KEY: Final = 1
_PAYLOAD_SIGNATURE: Final = 2

FRAME_BYTES: Final = 2 + TAG_BYTES
"""What a message adds to its plaintext: length and tag."""
_SCRATCH_FROM_BYTES: Final = 4096

_NONCE: Final = struct.Struct("<4xQ")
_LENGTH: Final = struct.Struct("!H")


class SymmetricState:
    """Noise's running hash and chaining key (rev. 34 s.5.2)."""

    def __init__(self) -> None:
        # The name has exactly 32 bytes, so it is the first hash and chaining key as it stands.
        self.h = PROTOCOL_NAME
        self._ck = PROTOCOL_NAME
        self._cipher: ChaCha20Poly1305 | None = None
        self._n = 0
        self.mix_hash(b"")  # the empty prologue

    def mix_hash(self, data: bytes) -> None:
        """Fold `data` into the hash: h = SHA256(h + data)."""
        self.h = hashlib.sha256(self.h + data).digest()

    def mix_key(self, secret: bytes) -> None:
        """New chaining key and cipher from a shared secret."""
        self._ck, key = self._hkdf(secret)
        self._cipher, self._n = ChaCha20Poly1305(key), 0

    def encrypt_and_hash(self, plain: bytes) -> bytes:
        """Seal (if a key exists by now) and mix what goes out."""
        sealed = plain
        if self._cipher is not None:
            sealed = self._cipher.encrypt(_NONCE.pack(self._n), plain, self.h)
            self._n += 1
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        """Open (if a key exists by now) and mix what came in.

        Raises:
            AuthError: the tag is wrong.
        """
        plain = sealed
        if self._cipher is not None:
            try:
                plain = self._cipher.decrypt(_NONCE.pack(self._n), sealed, self.h)
            except InvalidTag:
                raise AuthError("Noise handshake message does not open") from None
            self._n += 1
        self.mix_hash(sealed)
        return plain

    def split(self) -> tuple[bytes, bytes]:
        """Keys of the two directions: initiator's first."""
        return self._hkdf(b"")

    def _hkdf(self, secret: bytes) -> tuple[bytes, bytes]:
        temporary = hmac.digest(self._ck, secret, "sha256")
        first = hmac.digest(temporary, b"\x01", "sha256")
        return first, hmac.digest(temporary, first + b"\x02", "sha256")


class Sealer:
    """The sending direction: plaintext to length-prefixed Noise messages."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._n = 0

    def seal_into(self, out: memoryview, plain: bytes) -> int:
        """Write one message to the start of `out`; its length.

        Args:
            out: at least `len(plain) + FRAME_BYTES` long.
            plain: 1 to 65,519 bytes.
        """
        size = len(plain)
        assert 0 < size <= NOISE_PLAINTEXT_BYTES_MAX
        end = size + FRAME_BYTES
        _LENGTH.pack_into(out, 0, size + TAG_BYTES)
        self._cipher.encrypt_into(_NONCE.pack(self._n), plain, None, out[_LENGTH.size : end])
        self._n += 1
        return end


class Opener:
    """The receiving direction: bytes in any cut to plaintexts."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._n = 0
        self._partial = bytearray()
        self._scratch = bytearray()

    def receive(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        """Take bytes, yield the plaintexts of the messages that are complete now.

        A plaintext is valid until the next one is asked for: large ones share one buffer, which
        saves an allocation of 64 KiB a message (.2 of .75 CPU ms/MiB).

        Raises:
            DecodeError: a message shorter than its tag.
            AuthError: a message that does not open.
        """
        view = memoryview(data)
        offset = 0
        partial = self._partial
        if partial:
            offset = self._complete(view)
            if self._missing():
                return
            with memoryview(partial) as whole:
                yield self._open(whole[_LENGTH.size :])
            partial.clear()
        total = len(view)
        while total - offset >= _LENGTH.size:
            end = offset + _LENGTH.size + (view[offset] << 8 | view[offset + 1])
            if end > total:
                break
            yield self._open(view[offset + _LENGTH.size : end])
            offset = end
        partial += view[offset:]

    def _missing(self) -> int:
        """Bytes that the message begun by earlier bytes still lacks, at least."""
        partial = self._partial
        if len(partial) < _LENGTH.size:
            return _LENGTH.size - len(partial)
        return _LENGTH.size + (partial[0] << 8 | partial[1]) - len(partial)

    def _complete(self, view: memoryview) -> int:
        """Move what the begun message lacks from `view`; how much that took."""
        offset = 0
        # Twice at most: the length first, then the message.
        while (missing := self._missing()) and offset < len(view):
            piece = view[offset : offset + missing]
            self._partial += piece
            offset += len(piece)
        return offset

    def _open(self, sealed: memoryview) -> bytes | memoryview:
        size = len(sealed) - TAG_BYTES
        if size < 0:
            raise DecodeError("Noise message is shorter than its tag")
        nonce = _NONCE.pack(self._n)
        self._n += 1
        try:
            if size < _SCRATCH_FROM_BYTES:
                return self._cipher.decrypt(nonce, sealed, None)
            if not self._scratch:
                self._scratch = bytearray(NOISE_PLAINTEXT_BYTES_MAX)
            plain = memoryview(self._scratch)[:size]
            self._cipher.decrypt_into(nonce, sealed, None, plain)
        except InvalidTag:
            raise AuthError("Noise message does not open") from None
        finally:
            sealed.release()
        return plain


class NoiseState(Enum):
    """Where a handshake stands. The file does not know both roles at once: a table per role."""

    WAIT_1 = auto()  # responder
    WAIT_2 = auto()  # initiator, after sending message 1
    WAIT_3 = auto()  # responder, after sending message 2
    DONE = auto()
    FAILED = auto()


class NoiseInput(Enum):
    """A message arrived whole, or was refused."""

    RECV_MESSAGE = auto()
    RECV_BAD = auto()


NOISE_TRANSITIONS: Final[Mapping[tuple[NoiseState, NoiseInput], NoiseState]] = {
    (NoiseState.WAIT_1, NoiseInput.RECV_MESSAGE): NoiseState.WAIT_3,
    (NoiseState.WAIT_2, NoiseInput.RECV_MESSAGE): NoiseState.DONE,
    (NoiseState.WAIT_3, NoiseInput.RECV_MESSAGE): NoiseState.DONE,
    (NoiseState.WAIT_1, NoiseInput.RECV_BAD): NoiseState.FAILED,
    (NoiseState.WAIT_2, NoiseInput.RECV_BAD): NoiseState.FAILED,
    (NoiseState.WAIT_3, NoiseInput.RECV_BAD): NoiseState.FAILED,
}


class NoiseHandshake:
    """One side of the handshake.

    Args:
        signer: our identity.
        initiator: whether we dialled.
        static: fresh X25519 private key, 32 bytes.
        ephemeral: another one.
        expected: who must answer; None on the responder's side.
    """

    def __init__(
        self,
        signer: Signer,
        *,
        initiator: bool,
        static: bytes,
        ephemeral: bytes,
        expected: PeerId | None = None,
    ) -> None:
        self._signer = signer
        self._initiator = initiator
        self._expected = expected
        self._static = X25519PrivateKey.from_private_bytes(static)
        self._ephemeral = X25519PrivateKey.from_private_bytes(ephemeral)
        self._remote_ephemeral = b""
        self._symmetric = SymmetricState()
        self._partial = bytearray()
        self._out = bytearray()
        self.state = NoiseState.WAIT_2 if initiator else NoiseState.WAIT_1
        self.peer: PeerId | None = None
        """Who the other side proved to be, once DONE."""
        if initiator:
            self._write_message_1()

    def receive(self, data: bytes | memoryview) -> bool:
        """Take bytes; True once the peer is proven. Then `rest()` belongs to the channel.

        Raises:
            DecodeError, AuthError, ProtocolError: close without an answer.
        """
        self._partial += data
        while self.state is not NoiseState.DONE:
            message = self._next_message()
            if message is None:
                return False
            self._take(message)
        return True

    def to_send(self) -> bytes:
        """Take the length-prefixed messages to send."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def rest(self) -> bytes:
        """Take the bytes that came after the handshake."""
        rest = bytes(self._partial)
        self._partial.clear()
        return rest

    def channel(self) -> tuple[Sealer, Opener]:
        """The two directions of the finished handshake.

        Raises:
            UsageError: not finished.
        """
        if self.state is not NoiseState.DONE:
            raise UsageError("the handshake is not finished")
        first, second = self._symmetric.split()
        mine, theirs = (first, second) if self._initiator else (second, first)
        return Sealer(mine), Opener(theirs)

    def input(self, what: NoiseInput) -> None:
        """Apply one input.

        Raises:
            ProtocolError: not allowed in this state.
        """
        following = NOISE_TRANSITIONS.get((self.state, what))
        if following is None:
            raise ProtocolError(f"Noise: {what.name} in {self.state.name}")
        self.state = following

    def _next_message(self) -> bytes | None:
        partial = self._partial
        if len(partial) < _LENGTH.size:
            return None
        length: int = _LENGTH.unpack_from(partial)[0]
        if length > NOISE_HANDSHAKE_BYTES_MAX:
            self.input(NoiseInput.RECV_BAD)
            raise DecodeError("Noise handshake message is too long")
        if len(partial) < _LENGTH.size + length:
            return None
        message = bytes(partial[_LENGTH.size : _LENGTH.size + length])
        del partial[: _LENGTH.size + length]
        return message

    def _take(self, message: bytes) -> None:
        state = self.state
        try:
            if state is NoiseState.WAIT_1:
                self._read_message_1(message)
                self._write_message_2()
            elif state is NoiseState.WAIT_2:
                self._read_message_2(message)
                self._write_message_3()
            else:
                self._read_message_3(message)
        except (DecodeError, AuthError):
            self.input(NoiseInput.RECV_BAD)
            raise
        self.input(NoiseInput.RECV_MESSAGE)

    def _send(self, message: bytes) -> None:
        self._out += _LENGTH.pack(len(message)) + message

    def _payload(self) -> bytes:
        static = self._static.public_key().public_bytes_raw()
        signature = self._signer.sign(SIGNATURE_DOMAIN, static)
        key = encode_public_key(self._signer.id)
        return encode_message([(_PAYLOAD_KEY, key), (_PAYLOAD_SIGNATURE, signature)])

    def _write_message_1(self) -> None:
        public = self._ephemeral.public_key().public_bytes_raw()
        self._symmetric.mix_hash(public)
        self._send(public + self._symmetric.encrypt_and_hash(b""))

    def _read_message_1(self, message: bytes) -> None:
        if len(message) != _MESSAGE_1_BYTES:
            raise DecodeError("Noise message 1 must have 32 bytes")
        self._remote_ephemeral = message
        self._symmetric.mix_hash(message)
        self._symmetric.decrypt_and_hash(b"")

    def _write_message_2(self) -> None:
        symmetric = self._symmetric
        public = self._ephemeral.public_key().public_bytes_raw()
        symmetric.mix_hash(public)
        symmetric.mix_key(_exchange(self._ephemeral, self._remote_ephemeral))
        static = symmetric.encrypt_and_hash(self._static.public_key().public_bytes_raw())
        symmetric.mix_key(_exchange(self._static, self._remote_ephemeral))
        self._send(public + static + symmetric.encrypt_and_hash(self._payload()))

    def _read_message_2(self, message: bytes) -> None:
        if len(message) < _MESSAGE_2_BYTES_MIN:
            raise DecodeError("Noise message 2 is too short")
        symmetric = self._symmetric
        self._remote_ephemeral = message[:KEY_BYTES]
        symmetric.mix_hash(self._remote_ephemeral)
        symmetric.mix_key(_exchange(self._ephemeral, self._remote_ephemeral))
        static_end = 2 * KEY_BYTES + TAG_BYTES
        remote_static = symmetric.decrypt_and_hash(message[KEY_BYTES:static_end])
        symmetric.mix_key(_exchange(self._ephemeral, remote_static))
        self._prove(symmetric.decrypt_and_hash(message[static_end:]), remote_static)

    def _write_message_3(self) -> None:
        symmetric = self._symmetric
        static = symmetric.encrypt_and_hash(self._static.public_key().public_bytes_raw())
        symmetric.mix_key(_exchange(self._static, self._remote_ephemeral))
        self._send(static + symmetric.encrypt_and_hash(self._payload()))

    def _read_message_3(self, message: bytes) -> None:
        if len(message) < _MESSAGE_3_BYTES_MIN:
            raise DecodeError("Noise message 3 is too short")
        symmetric = self._symmetric
        static_end = KEY_BYTES + TAG_BYTES
        remote_static = symmetric.decrypt_and_hash(message[:static_end])
        symmetric.mix_key(_exchange(self._ephemeral, remote_static))
        self._prove(symmetric.decrypt_and_hash(message[static_end:]), remote_static)

    def _prove(self, payload: bytes, remote_static: bytes) -> None:
        """Learn who the other side is, or raise."""
        fields = decode_message_untrusted(payload)
        peer = decode_public_key_untrusted(fields.bytes_of(_PAYLOAD_KEY) or b"")
        signature = fields.bytes_of(_PAYLOAD_SIGNATURE) or b""
        if not verify(peer, SIGNATURE_DOMAIN, remote_static, signature):
            raise AuthError("the peer's identity key did not sign its Noise key")
        if self._expected is not None and peer != self._expected:
            raise AuthError("another peer answered at this address", peer)
        if peer == self._signer.id:
            raise AuthError("we are talking to ourselves", peer)
        self.peer = peer


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        # cryptography raises when the shared secret is all zero, as every low-order point makes it.
        raise AuthError("Noise key is a point of low order") from None
