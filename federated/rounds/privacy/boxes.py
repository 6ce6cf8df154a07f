"""Share boxes: a member's two shares for one other member, which the coordinator carries unread.

AES-256-GCM under a key of sender, receiver and plan that seals one box in its life, so the nonce is
zero. Who opens one knows that the sender's share key sealed it, in this plan and to this receiver.

Source: docs/specs/masks.md s.3.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from federated.errors import UsageError
from federated.rounds.privacy.masks import exchange
from federated.rounds.privacy.shamir import SHARE_BYTES

SHARE_INFO: Final = b"covey/fed/share/1"
TAG_BYTES: Final = 16
BOX_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
NONCE: Final = bytes(12)


def seal(
    seed_share: bytes,
    key_share: bytes,
    *,
    private: bytes,
    public: bytes,
    sender: bytes,
    receiver: bytes,
    plan: bytes,
) -> bytes:
    """Seal the receiver's shares of the sender's seed and mask key.

    Args:
        seed_share: of b, 66 bytes.
        key_share: of the mask key, 66 bytes.
        private: the sender's share key.
        public: the receiver's share key.
        sender: id.
        receiver: id.
        plan: the plan's hash.
    """
    if len(seed_share) != SHARE_BYTES or len(key_share) != SHARE_BYTES:
        raise UsageError("a share has 66 bytes")
    key = exchange(private, public, salt=plan, info=SHARE_INFO + sender + receiver)
    return AESGCM(key).encrypt(NONCE, seed_share + key_share, None)


def open_box(
    box: bytes, *, private: bytes, public: bytes, sender: bytes, receiver: bytes, plan: bytes
) -> tuple[bytes, bytes] | None:
    """The shares of the sender's seed and mask key; None if they are not its, ours or whole.

    Args:
        box: as the coordinator handed it on.
        private: the receiver's share key.
        public: the sender's share key.
        sender: id.
        receiver: id.
        plan: the plan's hash.
    """
    if len(box) != BOX_BYTES:
        return None
    key = exchange(private, public, salt=plan, info=SHARE_INFO + sender + receiver)
    try:
        plain = AESGCM(key).decrypt(NONCE, box, None)
    except InvalidTag:
        return None
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]
