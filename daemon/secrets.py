"""Secrets in texts: which there are, where, and a text without them.

A memory is copied to other machines and read by every agent, so a password in it is a password
given away. These rules know tokens by the marks their issuers put on them, private keys, URLs with
a password, and values that are called a secret. What has no mark and no name (forty random
characters alone) is not found: this keeps honest mistakes out, not a sender who hides something.

Theory of operation. Each rule names literal pieces, one of which a text must hold before its
pattern is tried: most notes cost a few substring searches. Texts are hostile: every repetition in a
pattern is bounded or starts only where a run of its characters starts, so that time stays linear in
the text. Found values are cut out by their places, the earliest and longest first, and never leave
this module in an error, a log or a count. Source: docs/specs/memory.md, *Scan*.
"""

# A pattern reads best as one line.
# ruff: noqa: E501

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY_CHARS_MAX: Final = 16_384
"""Longest private key block: RSA of 16,384 bits in PEM takes 13 KB."""

# Not behind a letter or digit: the middle of a longer word is no token. `_` and `-` may stand before.
_L: Final = r"(?<![A-Za-z0-9])"
# Not inside a run of the token's own characters: an unbounded one is tried once a run.
_RUN: Final = r"(?<![\w-])"


class Found(NamedTuple):
    """A secret in a text: where, and what it looks like. Never the secret itself."""

    start: int
    end: int
    kind: str


class Rule(NamedTuple):
    """How one kind of secret is known.

    Attributes:
        kind: what `[REDACTED:kind]` says.
        needles: one of these is in a text that holds it; compared in lower case if `folded`.
        pattern: group `v` is the secret, the whole match where there is none.
        folded: whether needles are looked for in the lower-case text.
        keep: told the value; False if it is an example, a name or a type.
    """

    kind: str
    needles: tuple[str, ...]
    pattern: re.Pattern[str]
    folded: bool = False
    keep: Callable[[str], bool] | None = None


# ---- what only looks like a secret

_EXAMPLE: Final = re.compile(
    r"example|sample|placeholder|redacted|dummy|fake|your[-_ ]?|change[-_]?me|replace|insert"
    r"|todo|xxxx|\*\*\*|\.\.\.|…|0{8}|1234567890|abcdefgh|deadbeef",
    re.IGNORECASE,
)
_DISTINCT_MIN: Final = 6
"""A random value of 16 characters or more has more different ones (hex: 1 in 10^6 has fewer)."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z_]*(?:[.:/-]+[A-Za-z_]+)*[.:]?")
_CODE: Final = re.compile(r"[(){}<>\[\]$%|\\]|^(?:&|@|%|#|/|\./|~/|[a-z]+://)|::|->|=>|==|!=")
_LONG_RUN: Final = re.compile(r"[A-Za-z0-9]{12}")
_TYPES: Final = re.compile(
    r"(?:sha-?\d|md5|base\d|utf-?\d|bcrypt|argon2|scrypt|pbkdf2|oauth-?2|http/?[12]|ipv[46]|uuid"
    r"|u?int\d|float\d|rs256|hs256|es256|ed25519|x25519|aes-?\d|rsa-?\d|str\b|string\b|bytes\b"
    r"|os\.|env\.|process\.|self\.|config\.|settings\.|secrets\.|vault[:.]|op:|arn:|projects/)",
    re.IGNORECASE,
)
_DATE: Final = re.compile(
    r"\d{4}-\d\d-\d\d|\d+(?:[.:,-]\d+)*(?:ms|s|m|h|d|kb|mb|gb|px|%)?\.?", re.IGNORECASE
)
_WORDS_AND_DIGITS: Final = re.compile(
    r"(?:[a-z]+[-_.])+[a-z]*\d{0,3}|[a-z]+\d{0,2}|v?\d+(?:\.\d+)*"
)


def is_example(value: str) -> bool:
    """Whether a value is what documentation writes in a secret's place."""
    if _EXAMPLE.search(value):
        return True
    return len(value) >= 16 and len(set(value.lower())) < _DISTINCT_MIN


def _real(value: str) -> bool:
    return not is_example(value)


def _has_digit(value: str) -> bool:
    return any(c.isdigit() for c in value) and not is_example(value)


def _random_looking(value: str) -> bool:
    """A token of letters and digits, not words joined by hyphens."""
    if is_example(value) or not _LONG_RUN.search(value):
        return False
    return value.lower() != value or sum(c.isdigit() for c in value) >= 2


def _is_value(value: str) -> bool:
    """Whether what stands behind `password =` is a password and not code, a type or a reference."""
    value = value.rstrip(".;,:!?")
    if len(value) < 8 or is_example(value) or _CODE.search(value) or _TYPES.match(value):
        return False
    if _DATE.fullmatch(value) or _PLAIN_NAME.fullmatch(value):
        return False
    if _WORDS_AND_DIGITS.fullmatch(value):
        return False
    return any(c.isalpha() for c in value) or len(value) >= 12


def _is_quoted_value(value: str) -> bool:
    """The same for a quoted string, which may be letters alone."""
    if len(value) < 8 or is_example(value) or " " in value.strip() or _TYPES.match(value):
        return False
    if re.search(r"[(){}<>\[\]$]|^(?:/|\./|~/|[a-z]+://)|::", value) or _DATE.fullmatch(value):
        return False
    return not re.fullmatch(
        r"(?:[A-Za-z]+[_.:/-])+[A-Za-z]+|[A-Z][A-Z_]+|(?:[a-z]+[A-Z][a-z]*)+", value
    )


def _is_password_in_url(value: str) -> bool:
    """Whether a URL's password is one: not a variable and none of the customary stand-ins."""
    stand_ins = {
        "password", "pass", "passwd", "pwd", "secret", "token", "user", "username", "postgres",
        "root", "admin", "guest", "test", "foo", "bar", "pw", "xxx", "key", "hunter2", "x",
        "git", "x-access-token", "x-oauth-basic", "minioadmin", "rabbitmq", "mysql", "redis",
    }  # fmt: skip
    return not (
        value.lower() in stand_ins
        or is_example(value)
        or re.search(r"[${}<>%*]", value) is not None
    )


# ---- the rules


def _rule(
    kind: str, needles: str, pattern: str, keep: Callable[[str], bool] | None = _real
) -> Rule:
    return Rule(kind, tuple(needles.split()), re.compile(pattern), keep=keep)


_NAMES: Final = (
    r"pass(?:word|wd|phrase|code)|pwd|secret(?:[_ -]?access)?(?:[_ -]?key)?|token"
    r"|(?:api|access|auth|account|client|private|signing|encryption|master|session|shared)[_ -]?"
    r"(?:key|secret|token)|apikey|authkey|credentials?|contraseña|passwort|kennwort|mot de passe|senha"
)
_NAME_NEEDLES: Final = (
    "pass", "pwd", "secret", "token", "key", "credential", "contraseña", "kennwort", "senha",
)  # fmt: skip

TOKENS: Final[tuple[Rule, ...]] = (
    _rule("aws", "AKIA ASIA", _L + r"(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Za-z])"),
    _rule("github", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
          _L + r"(?:gh[pousr]_[A-Za-z0-9_]{36,255}|github_pat_[A-Za-z0-9_]{22,255})"),
    _rule("gitlab", "glpat- glptt- gldt- glrt-", _L + r"gl(?:pat|ptt|dt|rt)-[\w-]{20,255}"),
    _rule("google", "AIza GOCSPX- ya29.",
          _L + r"(?:AIza[\w-]{35}(?![\w-])|GOCSPX-[\w-]{28}|ya29\.[\w-]{40,512})"),
    _rule("anthropic", "sk-ant-", _L + r"sk-ant-[a-z]{2,12}\d{2}-[\w-]{32,255}"),
    _rule("openai", "sk-", _RUN + r"sk-(?!ant-)(?:proj-|svcacct-|admin-)?[\w-]{32,255}",
          _random_looking),
    _rule("slack", "xox hooks.slack.com xapp-",
          _L + r"(?:xox[abeoprs]-[\w-]{10,255}|xapp-\d-[\w-]{20,255}"
          r"|hooks\.slack\.com/(?:services|workflows)/[\w/]{20,128})", _has_digit),
    _rule("stripe", "_live_ whsec_",
          _L + r"(?:[sr]k_live_[A-Za-z0-9]{20,255}|whsec_[A-Za-z0-9+/=]{24,128})"),
    _rule("npm", "npm_", _L + r"npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    _rule("pypi", "pypi-AgE", _L + r"pypi-AgE[\w-]{50,512}"),
    _rule("jwt", "eyJ",
          _RUN + r"eyJ[\w-]{8,2048}\.[\w-]{8,4096}\.[\w-]{8,1024}"),
    _rule("covey", "cvy_ COVEY1", _L + r"(?:cvy_[a-z2-7]{52}(?![a-z0-9])|COVEY1[A-Z2-7]{100,4096})"),
    _rule("azure", "AccountKey= 8Q~ sig= SharedAccessKey=",
          r"(?:AccountKey=(?P<v>[A-Za-z0-9+/]{86}==)|SharedAccessKey=(?P<v2>[A-Za-z0-9+/]{43}=)"
          r"|(?<![\w~.-])(?P<v3>[\w~.-]{3}8Q~[\w~.-]{31,34})(?![\w~.-])"
          r"|[?&]sig=(?P<v4>[A-Za-z0-9%+/]{40,100}(?:%3D|=)))"),
    _rule("sendgrid", "SG.", _L + r"SG\.[\w-]{22}\.[\w-]{43}(?![\w-])"),
    _rule("twilio", "SK", _L + r"SK[0-9a-f]{32}(?![0-9a-zA-Z])"),
    _rule("telegram", ":AA", _L + r"\d{8,10}:AA[\w-]{33}(?![\w-])"),
    # The first of its three parts is the account's number and stays: looked for from its first dot.
    _rule("discord", ".", r"\.(?<=[A-Za-z\d]{23}\.)(?P<v>[\w-]{6}\.[\w-]{27,38})(?![\w-])", _has_digit),
    _rule("discord", "api/webhooks/",
          r"discord(?:app)?\.com/api/webhooks/\d{17,20}/(?P<v>[\w-]{60,80})"),
    _rule("huggingface", "hf_", _L + r"hf_[A-Za-z0-9]{34,40}(?![A-Za-z0-9])"),
    _rule("age", "AGE-SECRET-KEY-1", _L + r"AGE-SECRET-KEY-1[A-Z0-9]{58}(?![A-Z0-9])"),
    _rule("digitalocean", "dop_v1_ doo_v1_", _L + r"do[op]_v1_[0-9a-f]{64}(?![0-9a-f])"),
    _rule("shopify", "shpat_ shpss_ shppa_", _L + r"shp(?:at|ss|pa)_[0-9a-fA-F]{32}(?![0-9a-fA-F])"),
    _rule("vault", "hvs. hvb.", _L + r"hv[sb]\.[\w-]{24,255}"),
    _rule("databricks", "dapi", _L + r"dapi[0-9a-f]{32}(?![0-9a-zA-Z])"),
    _rule("groq", "gsk_", _L + r"gsk_[A-Za-z0-9]{52}(?![A-Za-z0-9])"),
    _rule("xai", "xai-", _L + r"xai-[A-Za-z0-9]{70,90}(?![A-Za-z0-9])"),
    _rule("replicate", "r8_", _L + r"r8_[A-Za-z0-9]{37}(?![A-Za-z0-9])"),
    _rule("linear", "lin_api_", _L + r"lin_api_[A-Za-z0-9]{40}(?![A-Za-z0-9])"),
    _rule("docker", "dckr_pat_", _L + r"dckr_pat_[\w-]{27}(?![\w-])"),
)  # fmt: skip

# A value that is called a secret: `password = "..."`, `"token": "..."`, `API_KEY=...`. The names are
# looked for once, in the lower-case text (ignoring case took twice the time); what may stand behind
# a name is matched there.
_NAME: Final = re.compile(_NAMES)
_NAME_ANY_CASE: Final = re.compile(_NAMES, re.IGNORECASE)
_QUOTED: Final = re.compile(
    r"(?:[\"'`])?[ \t]{0,8}(?:[:=]|=>|:=|is|was)[ \t]{0,8}(?:[bruBRU]{0,2})([\"'`])(?P<v>[^\"'`\n]{8,256})\1"
)
_BARE: Final = re.compile(
    r"(?:[\"'`*]{0,3})[ \t]{0,8}(?:[:=]|=>|:=)(?:[*]{0,2})[ \t]{0,8}(?P<v>[^\s\"'`,;]{8,256})"
)
_SAID: Final = re.compile(
    r"(?i:[ \t]{1,4}(?:is|was|ist|es|est|:)(?: now| set to)?[ \t]{1,4}|[ \t]{1,4}(?=\S{0,255}\d))"
    r"(?P<v>[^\s\"'`,;]{8,256})"
)
_OPTION: Final = re.compile(
    r"(?<![\w-])--?(?:password|passwd|token|secret|api-key|pw)[ =](?P<v>[^\s\"'`]{8,256})"
)
_BEARER: Final = re.compile(
    r"(?i:\bbearer|\bbasic)[ \t]{1,4}(?P<v>[A-Za-z0-9._~+/-]{20,1024}={0,2})"
)
_URL: Final = re.compile(
    r"://[^\s/?#:@\"'<>`]{0,128}:(?P<v>[^\s/?#@\"'<>`]{3,256})@[A-Za-z0-9\[_$]"
)
_KEY_BEGIN: Final = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY: Final = re.compile(rf"[A-Za-z0-9+/=\s\\:,.-]{{0,{KEY_CHARS_MAX}}}")
_KEY_END: Final = re.compile(r"-----END (?:[A-Z0-9]{1,20} ){0,4}PRIVATE KEY(?: BLOCK)?-----")


def _is_said(value: str) -> bool:
    """In a sentence, only what no sentence contains: letters with digits or signs, mixed."""
    value = value.rstrip(".;,:!?)")
    if not _is_value(value):
        return False
    letters = any(c.isalpha() for c in value)
    digits = sum(c.isdigit() for c in value)
    signs = any(c in "!#&*+=?@^~" for c in value)
    return (
        letters
        and digits >= 1
        and (digits >= 2 or signs)
        and not re.fullmatch(r"[a-z]+(?:[-_/.][a-z0-9]+)*", value)
    )


NAMED: Final[tuple[Rule, ...]] = (
    Rule("assignment", ("--pass", "--token", "--secret", "--api-key", "-pw"), _OPTION, folded=True,
         keep=_is_value),
    Rule("bearer", ("bearer", "basic"), _BEARER, folded=True, keep=_random_looking),
    Rule("url_password", ("://",), _URL, keep=_is_password_in_url),
)  # fmt: skip


_EXACT: Final = tuple(
    (needle, rule) for rule in TOKENS + NAMED if not rule.folded for needle in rule.needles
)
_FOLDED: Final = tuple(
    (needle, rule) for rule in TOKENS + NAMED if rule.folded for needle in rule.needles
)


_TAILS: Final = ((_QUOTED, _is_quoted_value), (_BARE, _is_value), (_SAID, _is_said))


def _called_secrets(text: str, folded: str) -> Iterator[Found]:
    """Values behind a name for a secret."""
    # Lower case may be longer than its text (a dotted I): then places would not be the text's.
    same = len(folded) == len(text)
    names = _NAME.finditer(folded) if same else _NAME_ANY_CASE.finditer(text)
    for name in names:
        for tail, keep in _TAILS:
            match = tail.match(text, name.end())
            if match is not None and keep(match["v"]):
                yield Found(*match.span("v"), "assignment")
                break


def find_secrets(text: str) -> list[Found]:
    """Places of the secrets of a text, in order, none overlapping another."""
    # One list comprehension over the needles: a generator a rule cost five times as much.
    tried = [rule for needle, rule in _EXACT if needle in text]
    folded = text.lower()
    tried += [rule for needle, rule in _FOLDED if needle in folded]
    places = [place for rule in dict.fromkeys(tried) for place in _matches(rule, text)]
    if any(needle in folded for needle in _NAME_NEEDLES):
        places += _called_secrets(text, folded)
    if "PRIVATE KEY" in text:
        places += _private_keys(text)
    return _disjoint(places)


def redact(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with `[REDACTED:kind]` for each secret, and their kinds in order."""
    found = find_secrets(text)
    if not found:
        return text, ()
    parts = []
    at = 0
    for place in found:
        parts += [text[at : place.start], f"[REDACTED:{place.kind}]"]
        at = place.end
    parts.append(text[at:])
    return "".join(parts), tuple(place.kind for place in found)


def _matches(rule: Rule, text: str) -> Iterator[Found]:
    for match in rule.pattern.finditer(text):
        start, end = _value_span(match)
        if rule.keep is None or rule.keep(text[start:end]):
            yield Found(start, end, rule.kind)


def _value_span(match: re.Match[str]) -> tuple[int, int]:
    """The secret's place: the named group that matched, else the whole match."""
    for name in match.re.groupindex:
        if match.start(name) >= 0:
            return match.span(name)
    return match.span()


def _private_keys(text: str) -> Iterator[Found]:
    """Blocks from BEGIN to END; without an END, as far as the key's characters reach."""
    at = 0
    while (begin := _KEY_BEGIN.search(text, at)) is not None:
        end = _KEY_END.search(text, begin.end(), begin.end() + KEY_CHARS_MAX)
        if end is not None:
            stop = end.end()
        else:
            body = _KEY_BODY.match(text, begin.end())
            stop = begin.end() if body is None else body.end()
        at = stop
        if stop - begin.end() > 40:  # a header alone is a sentence about keys
            yield Found(begin.start(), stop, "private_key")


def _disjoint(places: list[Found]) -> list[Found]:
    """Overlapping places as one: the kind of the first and longest."""
    kept: list[Found] = []
    for place in sorted(places, key=lambda p: (p.start, -p.end)):
        if kept and place.start < kept[-1].end:
            if place.end > kept[-1].end:
                kept[-1] = kept[-1]._replace(end=place.end)
        else:
            kept.append(place)
    return kept
