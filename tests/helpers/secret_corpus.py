"""Synthetic notes with and without secrets, from a seed: nothing in here is anybody's.

Half of the carrier sentences and look-alikes are for writing rules by (`dev`), the other half
(`held`) were written after the rules and are only measured.
"""

# Sentences as they stand in notes.
# ruff: noqa: E501

from __future__ import annotations

import base64
import re
import string
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

HEX = "0123456789abcdef"
UPPER = string.ascii_uppercase + string.digits
ALNUM = string.ascii_letters + string.digits
URL64 = ALNUM + "-_"
B64 = ALNUM + "+/"
BECH32 = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"


class Planted(NamedTuple):
    """A note, what is secret in it (empty for none), and the kind of case."""

    text: str
    secret: str
    case: str


def draw(rng: random.Random, alphabet: str, n: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(n))


def _password(rng: random.Random) -> str:
    """As people and managers make them: words with digits and signs, or random characters."""
    words = ["Tulip", "harbor", "Copper", "violin", "Mango", "thunder", "Walrus", "ember", "Quartz"]
    signs = "!#&*+=?@^~-_"
    forms = (
        rng.choice(words) + str(rng.randrange(10, 9999)) + rng.choice(signs),
        draw(rng, ALNUM + "!#*+=?^~-_", rng.randrange(12, 28)) + rng.choice("0123456789"),
        "".join(rng.sample(words, 2)) + rng.choice(signs) + str(rng.randrange(100)),
    )
    return rng.choice(forms)


def _pem(rng: random.Random) -> str:
    what = rng.choice(["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "])
    lines = [draw(rng, B64, 64) for _ in range(rng.randrange(3, 26))]
    return "\n".join(
        [f"-----BEGIN {what}PRIVATE KEY-----", *lines, f"-----END {what}PRIVATE KEY-----"]
    )


def _jwt(rng: random.Random) -> str:
    def part(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    body = '{"sub":"' + draw(rng, ALNUM, 20) + '"}'
    return ".".join([part('{"alg":"HS256","typ":"JWT"}'), part(body), draw(rng, URL64, 43)])


TOKENS: dict[str, Callable[[random.Random], str]] = {
    "aws": lambda r: r.choice(["AKIA", "ASIA"]) + draw(r, UPPER, 16),
    "github": lambda r: r.choice(["ghp_", "gho_", "ghs_", "ghu_"]) + draw(r, ALNUM, 36),
    "github_fine": lambda r: "github_pat_" + draw(r, ALNUM, 22) + "_" + draw(r, ALNUM, 59),
    "gitlab": lambda r: "glpat-" + draw(r, URL64, 20),
    "google": lambda r: "AIza" + draw(r, URL64, 35),
    "openai": lambda r: r.choice(["sk-", "sk-proj-", "sk-svcacct-"]) + draw(r, ALNUM, 48),
    "anthropic": lambda r: "sk-ant-api03-" + draw(r, URL64, 93) + "AA",
    "slack": lambda r: f"xoxb-{draw(r, string.digits, 12)}-{draw(r, string.digits, 12)}-{draw(r, ALNUM, 24)}",
    "stripe": lambda r: r.choice(["sk_live_", "rk_live_"]) + draw(r, ALNUM, 24),
    "npm": lambda r: "npm_" + draw(r, ALNUM, 36),
    "pypi": lambda r: "pypi-AgEIcHlwaS5vcmc" + draw(r, URL64, 150),
    "jwt": _jwt,
    "covey_token": lambda r: "cvy_" + draw(r, string.ascii_lowercase + "234567", 52),
    "covey_ticket": lambda r: "COVEY1" + draw(r, string.ascii_uppercase + "234567", 260),
    "azure": lambda r: f"AccountName=acct;AccountKey={draw(r, B64, 86)}==",
    "azure_client": lambda r: draw(r, ALNUM, 3) + "8Q~" + draw(r, ALNUM + "_.~-", 34),
    "sendgrid": lambda r: f"SG.{draw(r, URL64, 22)}.{draw(r, URL64, 43)}",
    "twilio": lambda r: "SK" + draw(r, HEX, 32),
    "telegram": lambda r: draw(r, "123456789", 10) + ":AA" + draw(r, URL64, 33),
    "discord": lambda r: f"M{draw(r, ALNUM, 23)}.{draw(r, ALNUM, 6)}.{draw(r, URL64, 38)}",
    "huggingface": lambda r: "hf_" + draw(r, ALNUM, 34),
    "age": lambda r: "AGE-SECRET-KEY-1" + draw(r, BECH32, 58),
    "private_key": _pem,
}  # fmt: skip

CARRIERS = {
    "dev": [
        "The deploy script uses {} and it works.",
        "export SERVICE_CREDENTIAL={}",
        'client = Client("{}")',
        "curl -H 'Authorization: {}' https://api.internal/v1/me",
        "found this in the logs: {}\nplease rotate it",
        '{{"auth": "{}", "region": "eu"}}',
        "- value: {}\n  name: deploy",
        "`{}`",
    ],
    "held": [
        "He pasted ({}) into the channel yesterday, so revoke it.",
        "set -gx CI_AUTH '{}'; make release",
        "config.yaml line 14 reads auth: {} and nobody noticed",
        "https://example.org/hook?auth={}",
        '<add name="upstream" value="{}"/>',
        "2026-11-02T10:11:12Z ERROR 401 for {}, retrying",
        "| upstream | {} | rotated monthly |",
        "auth={};path=/",
    ],
}

NAMED = {
    "dev": [
        'password = "{}"',
        "DB_PASSWORD={}",
        "api_key: {}",
        '"client_secret": "{}",',
        "the root password is {}",
        "postgres://app:{}@db.internal:5432/app",
        "mysql -u root --password={} app",
        "Authorization: Bearer {}",
    ],
    "held": [
        "passwd: '{}'",
        "export API_TOKEN='{}'",
        "secret_key = '{}'  # production",
        "login with user ops, password: {}",
        "amqps://worker:{}@queue.internal/jobs",
        'env["ACCESS_TOKEN"] = "{}"',
        "Wi-Fi password {} for the lab",
        "redis-cli -a x; token={} is what staging uses",
    ],
}


def _named_value(rng: random.Random, carrier: str) -> str:
    if "://" in carrier:
        return draw(rng, ALNUM + "-_~", rng.randrange(10, 24)) + "7a"
    if "Bearer" in carrier:
        return draw(rng, URL64, 40) + "4b9"
    return _password(rng)


def secrets(rng: random.Random, half: str, n: int) -> list[Planted]:
    """`n` notes with a secret each, all kinds in turn."""
    kinds = sorted(TOKENS)
    found = []
    for i in range(n):
        if i % 4 == 3:
            carrier = NAMED[half][(i // 4) % len(NAMED[half])]
            value, case = _named_value(rng, carrier), f"named {carrier}"
        else:
            case = kinds[(i - i // 4) % len(kinds)]
            carrier = rng.choice(CARRIERS[half])
            value = TOKENS[case](rng)
        shown = carrier.format(value)
        found.append(Planted(f"{_filler(rng)}\n{shown}", value, case))
    return found


def leaks(planted: Planted, text: str) -> bool:
    """Whether 20 characters of the secret's end are still in a text."""
    return planted.secret[-24:-4] in text if len(planted.secret) > 24 else planted.secret in text


def _filler(rng: random.Random) -> str:
    return rng.choice([
        "Notes from the migration on Tuesday.",
        "What we decided about the build:",
        "Troubleshooting the flaky integration test.",
        "# Setup",
        "Reminder for whoever takes over:",
    ])  # fmt: skip


BENIGN: dict[str, Sequence[str]] = {
    "dev": [
        "fixed in commit <hex:40>",
        "sha256:<hex:64> is the image we run",
        "request id <hex:8>-<hex:4>-4<hex:3>-a<hex:3>-<hex:12> timed out",
        "data:image/png;base64,<b64:400>==",
        '"integrity": "sha512-<b64:86>==",',
        'lodash@^4.17.21:\n  resolved "…/lodash-4.17.21.tgz#<hex:40>"',
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        'password = os.environ["DB_PASSWORD"]',
        "api_key: ${{ secrets.API_KEY }}",
        "token = get_token(session, refresh=True)",
        "set OPENAI_API_KEY=sk-your-key-here-xxxxxxxxxxxxxxxxxxxx",
        "def login(user: str, password: str) -> Token: ...",
        "the token budget is <dec:3> tokens per answer",
        "postgres://user:password@localhost:5432/app",
        "The password is stored as an argon2 hash, never in plain text.",
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5<b64:48> dev@host",
        "-----BEGIN PUBLIC KEY-----\n<b64:64>\n-----END PUBLIC KEY-----",
        "peer id 12D3KooW<alnum:44>",
        "secret: kubernetes-secret-name",
        "token: undefined",
    ],
    "held": [
        "git bisect says <hex:12>..<hex:12>, merge <hex:40>",
        "md5 <hex:32>  dump.sql.gz",
        "trace_id=<hex:32> span_id=<hex:16>",
        "url(data:font/woff2;base64,<b64:300>)",
        'checksum = "<hex:64>"  # Cargo.lock',
        "    --hash=sha256:<hex:64> \\",
        "Use `ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx` in the docs, not a real one",
        "password: { type: string, minLength: 8 }",
        "const secret = process.env.SESSION_SECRET ?? fail()",
        "if token.kind == TokenKind.PASSWORD_RESET: return None",
        "api_key=<your-api-key>",
        "The secret to fast recall is one short read transaction.",
        "Token bucket: rate <dec:3>/s, burst 500; password reset is separate.",
        "mongodb://admin:${MONGO_PASSWORD}@mongo:27017",
        "Passwords must have 12 characters; api keys are rotated each quarter.",
        "docker pull registry.internal/app@sha256:<hex:64>",
        "etag: W/\"<alnum:27>\"",
        "bafybei<b32:52> is the folder's CID",
        "sk-learn-pipeline-for-the-quarterly-report-<dec:3> is the job's name",
        "token: Optional[str] = None  # line <dec:3>",
        "const apiKey = config.get('maps.apiKey') // <hex:7>",
        "aws s3 cp s3://bucket/<hex:32>.parquet . ; password prompt appears",
        "credentials: include, mode: cors, and the token endpoint is /oauth2/token",
    ],
}  # fmt: skip


_ALPHABETS = {
    "hex": HEX,
    "b64": B64,
    "alnum": ALNUM,
    "b32": string.ascii_lowercase + "234567",
    "dec": "123456789",
}


def _drawn(rng: random.Random, template: str) -> str:
    """A template with `<hex:40>` and its kin filled in."""
    return re.sub(r"<(\w+):(\d+)>", lambda m: draw(rng, _ALPHABETS[m[1]], int(m[2])), template)


def benign(rng: random.Random, half: str, n: int) -> list[Planted]:
    """`n` notes that look as if they held a secret and hold none."""
    makers = BENIGN[half]
    return [
        Planted(
            f"{_filler(rng)}\n{_drawn(rng, makers[i % len(makers)])}", "", makers[i % len(makers)]
        )
        for i in range(n)
    ]
