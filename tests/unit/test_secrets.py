"""Secrets in texts: what is found, what is left alone, and that no text takes long."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest

from daemon.config import SecurityConfig
from daemon.scanner import TextScanner
from daemon.secrets import NAMED, TOKENS, find_secrets, is_example, redact
from memory.errors import RefusedError
from tests.helpers.secret_corpus import CARRIERS, benign, leaks, secrets
from tests.helpers.secret_corpus import TOKENS as MADE

CAUGHT_MIN = 0.95
FALSE_MAX = 0.02
SIZE = 64 * 1024


@pytest.mark.parametrize("half", ["dev", "held"])
def test_the_corpus_is_caught_and_look_alikes_are_left(half: str) -> None:
    rng = random.Random(f"secrets/{half}")
    with_secret, without = secrets(rng, half, 150), benign(rng, half, 150)
    missed = [planted.case for planted in with_secret if leaks(planted, redact(planted.text)[0])]
    false = [planted.case for planted in without if redact(planted.text)[1]]
    print(f"{half}: caught {150 - len(missed)} of 150, false {len(false)} of 150")
    assert len(missed) <= (1 - CAUGHT_MIN) * 150, missed
    assert len(false) <= FALSE_MAX * 150, false


@pytest.mark.parametrize("kind", sorted(MADE))
def test_each_kind_of_token_is_found_in_each_sentence(kind: str) -> None:
    rng = random.Random(kind)
    for carrier in CARRIERS["dev"]:
        token = MADE[kind](rng)
        text, kinds = redact(carrier.format(token))
        assert kinds, carrier
        assert token[-20:-4] not in text
        assert text.count("[REDACTED:") == len(kinds)


@pytest.mark.parametrize(
    "text",
    [
        'password = "correct horse 7 battery"',
        "see https://user@example.org/x and https://example.org:8080/a@b",
        "secret_key: str",
        "token: 2026-11-25",
        "AKIAIOSFODNN7EXAMPLE",
        "the secret is out",
        "API keys: see the vault",
        "password: [REDACTED:assignment]",
        "a" * 2000,
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == (text, ())


def test_only_the_value_goes() -> None:
    text, kinds = redact("DB_PASSWORD=Tulip42!x and postgres://app:s3cr3tPw9@db/x stay named")
    assert text == (
        "DB_PASSWORD=[REDACTED:assignment] and postgres://app:[REDACTED:url_password]@db/x"
        " stay named"
    )
    assert kinds == ("assignment", "url_password")


def test_a_text_is_redacted_once() -> None:
    rng = random.Random(3)
    for planted in secrets(rng, "dev", 100):
        once, _ = redact(planted.text)
        assert redact(once) == (once, ())


def test_places_are_in_order_and_apart() -> None:
    rng = random.Random(4)
    text = "\n".join(planted.text for planted in secrets(rng, "dev", 60))
    places = find_secrets(text)
    assert len(places) >= 55
    assert all(a.end <= b.start for a, b in pairwise(places))


def test_a_private_key_goes_whole_also_without_its_end() -> None:
    rng = random.Random(5)
    block = MADE["private_key"](rng)
    assert redact(f"key:\n{block}\nbye")[0] == "key:\n[REDACTED:private_key]\nbye"
    cut = block[: block.index("-----END")]
    assert "REDACTED:private_key" in redact(cut)[0]
    assert block[60:90] not in redact(cut)[0]


def test_examples_are_known() -> None:
    assert is_example("your-api-key")
    assert is_example("x" * 20)
    assert not is_example("q8Zr2LmWx04TyPd1")


HOSTILE = [
    *(needle for rule in TOKENS + NAMED for needle in rule.needles),
    *(f"-{needle}" for rule in TOKENS for needle in rule.needles),
    "a", "A", "0", "-", "_", " ", ":", "=", "é", "\t", "-eyJ", "eyJa.", "sk-a-", "password=",
    "password:a ", "password is ", "token a1", "-----BEGIN ", "-----BEGIN A ",
    "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----AAAA ", "a://b:", "a://b:c@",
    "://:aaa", "bearer ", "basic a", "--password ", "api key = ", 'password="', 'password="a',
    "credentials\t\t\t", "aaaaaaaaaaaaaaaaaaaaaaaaaa.", "0000000000:AA",
]  # fmt: skip


@pytest.mark.attack
@pytest.mark.slow
def test_no_text_of_64_kib_takes_long() -> None:
    """Linear: twice the text, at most about twice the time; and never seconds."""
    needles = " ".join(needle for rule in TOKENS + NAMED for needle in rule.needles) + " "
    slow = []
    for piece in HOSTILE:
        for head in ("", needles)[: 1 + (piece in HOSTILE[-24:])]:
            text = (head + piece * (SIZE // len(piece)))[:SIZE] + "!"
            before = time.process_time()
            redact(text)
            took_s = time.process_time() - before
            if took_s > 1.0:
                slow.append((piece, bool(head), took_s))
    assert not slow


def test_settings_decide_what_happens() -> None:
    text = "token = ghp_" + "aB3" * 12
    redacting = TextScanner(SecurityConfig())
    assert redacting.scan(text, foreign=False).text == "token = [REDACTED:github]"
    assert redacting.scan(text, foreign=True).redactions == ("github",)
    assert redacting.redactions == {"github": 2}
    rejecting = TextScanner(SecurityConfig(secrets="reject"))
    with pytest.raises(RefusedError) as refused:
        rejecting.scan(text, foreign=False)
    assert refused.value.reason == "secret"
    assert "ghp_" not in str(refused.value)
    assert rejecting.scan(text, foreign=True).redactions == ("github",)  # never refuses a peer's
    allowing = TextScanner(SecurityConfig(secrets="allow", peer_secrets="allow"))
    assert allowing.scan(text, foreign=False, person=True).text == text
    assert allowing.scan(text, foreign=False).redactions == ("github",)  # an agent's
    assert allowing.scan(text, foreign=True).text == text


def test_the_log_names_kinds_and_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    TextScanner(SecurityConfig()).scan("token = ghp_" + "aB3" * 12, foreign=False)
    [record] = caplog.records
    assert record.getMessage() == "redacted"
    assert "aB3" not in str(vars(record))
