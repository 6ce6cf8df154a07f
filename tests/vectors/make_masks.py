"""Writes masks_v1.json: shares, keys of pairs, masks, share boxes and words of fixed point.

An encoder of its own: integers of Python and the primitives of `cryptography`, other functions, the
same bytes. Members of all versions must agree on them, or masks do not cancel. Run it from this
folder; a test checks that the file it writes is the one committed.
"""

import hashlib
import json
from fractions import Fraction
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = Path(__file__).parent
P = 2**521 - 1
PLAN = hashlib.sha256(b"covey vector plan").digest()


def seed(label):
    return hashlib.sha256(b"covey vector " + label.encode()).digest()


def number(label):
    wide = b"".join(seed(f"{label} {i}") for i in range(3))
    return int.from_bytes(wide, "big") % P


def share(coefficients, x):
    return sum(c * pow(x, i, P) for i, c in enumerate(coefficients)) % P


def shared_secrets():
    cases = []
    for label, threshold, count in (("one", 1, 1), ("six of nine", 6, 9), ("all", 5, 5)):
        secret = seed(f"secret {label}")
        coefficients = [int.from_bytes(secret, "big")]
        coefficients += [number(f"{label} {i}") for i in range(1, threshold)]
        shares = [share(coefficients, x).to_bytes(66, "big").hex() for x in range(1, count + 1)]
        drawn = b"".join(c.to_bytes(66, "big") for c in coefficients[1:])
        cases.append(
            {
                "name": label,
                "secret": secret.hex(),
                "threshold": threshold,
                "drawn": drawn.hex(),
                "shares": shares,
            }
        )
    return cases


def members():
    """Three, by id."""
    found = []
    for label in ("ann", "ben", "cat"):
        keys = {use: X25519PrivateKey.from_private_bytes(seed(f"{label} {use}")) for use in USES}
        member = {"id": seed(f"{label} id"), "seed": seed(f"{label} seed")}
        for use, key in keys.items():
            member[f"{use}_private"] = key.private_bytes_raw()
            member[f"{use}_public"] = key.public_key().public_bytes_raw()
        found.append(member)
    return sorted(found, key=lambda member: member["id"])


USES = ("mask", "share")


def agreed(a, b, use, info):
    secret = X25519PrivateKey.from_private_bytes(a[f"{use}_private"]).exchange(
        X25519PublicKey.from_public_bytes(b[f"{use}_public"])
    )
    return HKDF(SHA256(), 32, salt=PLAN, info=info).derive(secret)


def pair_key(a, b):
    low, high = sorted((a["id"], b["id"]))
    return agreed(a, b, "mask", b"covey/fed/mask/1" + low + high)


def stream(key, count, size):
    """Words of the key stream, by the block cipher alone: counter mode written out."""
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    counters = range(-(-count * size // 16))
    data = b"".join(cipher.update(counter.to_bytes(16, "big")) for counter in counters)
    return [int.from_bytes(data[i * size : (i + 1) * size], "little") for i in range(count)]


def masked(who, everyone, words, bits):
    total = list(words)
    for key, sign in [(who["seed"], 1)] + [
        (pair_key(who, other), 1 if other["id"] > who["id"] else -1)
        for other in everyone
        if other is not who
    ]:
        drawn = stream(key, len(words), bits // 8)
        total = [(t + sign * d) % 2**bits for t, d in zip(total, drawn, strict=True)]
    return total


def box(sender, receiver):
    """Both shares of the sender's secrets, to one reader."""
    info = b"covey/fed/share/1" + sender["id"] + receiver["id"]
    plain = seed("b part") * 2 + b"bb" + seed("k part") * 2 + b"kk"
    key = agreed(sender, receiver, "share", info)
    return {"plain": plain.hex(), "box": AESGCM(key).encrypt(bytes(12), plain, None).hex()}


def largest_power(bound, count, bits, noise):
    exponent = -2000
    while count * (Fraction(bound) * Fraction(2) ** (exponent + 1) + noise) < 2 ** (bits - 1):
        exponent += 1
    return exponent


def scales():
    cases = []
    for bound, count, bits, noise in (
        (1.0, 20, 32, 0), (1.0, 1, 32, 0), (1.0, 64, 32, 0), (0.3, 9, 32, 0), (2.0**-40, 9, 32, 0),
        (1e6, 9, 32, 1000), (60.0 * 2**20, 9, 64, 0), (1.0, 64, 64, 2**40),
    ):  # fmt: skip
        exponent = largest_power(bound, count, bits, noise)
        cases.append(
            {"bound": bound, "members": count, "bits": bits, "noise": noise, "exponent": exponent}
        )
    return cases


def words():
    """round(S x), half to even, modulo 2^bits."""
    cases = []
    for bits, exponent in ((32, 20), (64, 40)):
        values = [0.0, 1.0, -1.0, 0.5, -0.25, 2.0**-exponent * 1.5, 2.0**-exponent * 2.5, -0.7]
        whole = [round(Fraction(v) * 2**exponent) % 2**bits for v in values]
        cases.append({"bits": bits, "exponent": exponent, "values": values, "words": whole})
    return cases


def text():
    ann, ben, cat = everyone = members()
    plain = [[3 * i + j for i in range(21)] for j in range(3)]
    vectors = {
        "shamir": shared_secrets(),
        "plan": PLAN.hex(),
        "members": [{k: v.hex() for k, v in member.items()} for member in everyone],
        "pairs": [pair_key(a, b).hex() for a, b in ((ann, ben), (ann, cat), (ben, cat))],
        "plain": plain,
        "masked": {
            str(bits): [
                masked(who, everyone, row, bits) for who, row in zip(everyone, plain, strict=True)
            ]
            for bits in (32, 64)
        },
        "box": box(ann, cat),
        "scales": scales(),
        "words": words(),
    }
    return json.dumps(vectors, indent=1) + "\n"


if __name__ == "__main__":
    (HERE / "masks_v1.json").write_text(text(), "ascii")
