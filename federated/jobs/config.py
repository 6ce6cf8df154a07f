"""Settings of the jobs: the `[jobs]` section of the configuration.

A new node computes the built-ins and searches its memory for those it knows, and nothing else;
whatever touches more is named here by the operator, together with who may use it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping  # noqa: TC003 - the types of the fields are read at run time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

OWN: Final = "own"
FRIENDS: Final = "friends"

_ROOT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HANDLER_ID: Final = re.compile(r"[a-z][a-z0-9_.-]{0,62}@[0-9]{1,6}")
_CALLABLE: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_WALL_S_MAX: Final = 24 * 3600.0
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
# Names that come with the program: an operator's handler may not take the place of one.
RESERVED_PREFIXES: Final = ("echo@", "hash@", "wordcount@", "files.", "memory.")


class HandlerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[jobs.handlers."name@1"]`: a program of the operator's.

    Attributes:
        run: `module:function`, called with a list of rows and returning a list of answers; or a
            command as a list of arguments, which reads rows as JSON lines and writes answers so.
            Nothing of a job ever becomes an argument.
        groups: who may use it: `own` devices, `friends`, or the name of a group.
        effect: it acts on the world: run at most once a row.
        idempotent_by_token: running it twice with the same token does no harm.
        deterministic: a row's answer depends on that row, params, template and columns alone.
        local: it also depends on this machine.
        wall_s: seconds a task may take.
        mem_bytes: address space of its process.
        out_bytes: bytes of a task's answer.
        slots: tasks at once, each in a process of its own.
        sandbox: what it may reach. `strict`: neither network nor files beyond the system's and
            `read`; `network`: the network too. Where the system offers no sandbox, only the limits
            of memory, time, processes and files hold: `covey doctor` says so.
        read: folders that it may read besides the system's, such as the one of its module.
        summary: a line for people.
    """

    run: str | tuple[str, ...]
    groups: tuple[str, ...] = (OWN,)
    effect: bool = False
    idempotent_by_token: bool = False
    deterministic: bool = False
    local: bool = False
    wall_s: float = 60.0
    mem_bytes: int = 512 * 2**20
    out_bytes: int = 2**20
    slots: int = 1
    sandbox: Literal["strict", "network"] = "strict"
    read: tuple[str, ...] = ()
    summary: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.run, str):
            if not _CALLABLE.fullmatch(self.run):
                raise ValueError(f"run: {self.run!r} is not module:function; a command is a list")
        elif not self.run or not self.run[0] or any("\0" in part for part in self.run):
            raise ValueError("run: a command is a list that begins with a program")
        _check_groups(self.groups)
        if self.effect and self.deterministic:
            raise ValueError("deterministic: a handler with an effect is run once, not compared")
        if not 0 < self.wall_s <= _WALL_S_MAX:
            raise ValueError("wall_s must be above 0 and at most a day")
        if self.mem_bytes < 32 * 2**20:
            raise ValueError("mem_bytes must be at least 32 MiB: Python alone takes that")
        if not 0 < self.out_bytes <= 2**20:
            raise ValueError("out_bytes must be 1 to 1 MiB")
        if not 1 <= self.slots <= 64:
            raise ValueError("slots must be 1 to 64")
        if any(not folder.startswith("/") for folder in self.read):
            raise ValueError("read: folders are absolute")


class LlmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[jobs.llm."NAME"]`: an OpenAI-compatible endpoint, offered to peers as `llm:NAME`.

    Attributes:
        url: up to and with `/v1`; http only to this machine.
        model: the endpoint's name of the model.
        api: `chat` uses /chat/completions, `completions` /completions.
        system: what the model is told before the rows; the operator's word, not a peer's.
        groups: who may use it: `own` devices, `friends`, or the name of a group.
        key_file: file with the bearer token; empty: none is sent.
        slots: requests at once.
        tokens_per_day: what one peer may use in 24 hours, prompt and answer together; own devices
            have no limit.
        max_tokens: most tokens of an answer.
        wall_s: seconds of one request.
    """

    url: str
    model: str
    api: Literal["chat", "completions"] = "chat"
    system: str = ""
    groups: tuple[str, ...] = (OWN,)
    key_file: str = ""
    slots: int = 1
    tokens_per_day: int = 200_000
    max_tokens: int = 4096
    wall_s: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
            raise ValueError("url: must be http://host/v1 or https://host/v1, without a name in it")
        if parts.query or parts.fragment:
            raise ValueError("url: must end with its path")
        if parts.scheme == "http" and host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("url: http goes to this machine only; use https")
        if not self.model:
            raise ValueError("model: the endpoint's name of the model is missing")
        _check_groups(self.groups)
        if not 1 <= self.slots <= 64:
            raise ValueError("slots must be 1 to 64")
        if self.tokens_per_day < 0 or self.max_tokens < 1:
            raise ValueError("tokens_per_day must not be negative, max_tokens at least 1")
        if not 0 < self.wall_s <= 600:
            raise ValueError("wall_s must be above 0 and at most 600")


def _check_groups(groups: Sequence[str]) -> None:
    if any(not group or len(group) > 200 for group in groups):
        raise ValueError("groups: each is `own`, `friends` or the name of a group")


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """`[jobs]`: work for peers and by peers."""

    friends: tuple[str, ...] = ()
    """Owners, by key or name, whose devices are friends: their answers are trusted sooner, and
    they get twice a stranger's share of this machine."""
    slots: int = 0
    """Tasks at once; 0: half the processors, at least 1. Raising it slows what else runs here."""
    friend_work_s_per_h: float = 3600.0
    """Seconds of work an hour that one friend's owner may have of this machine."""
    stranger_work_s_per_h: float = 600.0
    """The same for another member of a group; 0: none."""
    user_idle_s: float = 0.0
    """While somebody typed at a terminal of this machine within so many seconds, no work for peers
    is taken; 0: regardless."""
    files: Mapping[str, str] = field(default_factory=dict)
    """{name: folder} whose files `files.list` and `files.wordcount` may read."""
    files_groups: tuple[str, ...] = (OWN,)
    """Who may: `own` devices, `friends`, or the name of a group."""
    handlers: Mapping[str, HandlerConfig] = field(default_factory=dict)
    """Programs of the operator's by `name@version`."""
    llm: Mapping[str, LlmConfig] = field(default_factory=dict)
    """Models by the name under which peers use them."""
    expr: tuple[str, ...] = ()
    """Who may send expressions to be computed here: `own` devices, `friends`; nobody by default.
    Needs the extra `expr`."""
    engines: tuple[str, ...] = ()
    """Addresses of other engines a job may name, such as `dask://127.0.0.1:8786`: on this machine,
    or `tls://HOST:PORT` with the three files below. Their workers must be able to import Covey and
    the functions of `handlers`. Needs the extra `dask`."""
    engines_ca: str = ""
    """File with the authority that vouches for a `tls://` engine."""
    engines_cert: str = ""
    """File with the certificate that we show it."""
    engines_key: str = ""
    """File with the key of that certificate."""

    def __post_init__(self) -> None:
        if not 0 <= self.slots <= 1024:
            raise ValueError("slots must be 0 to 1024")
        if self.friend_work_s_per_h < 0 or self.stranger_work_s_per_h < 0:
            raise ValueError("work_s_per_h must not be negative")
        if self.user_idle_s < 0:
            raise ValueError("user_idle_s must not be negative")
        for name, folder in self.files.items():
            if not _ROOT_NAME.fullmatch(name):
                raise ValueError(f"files: {name!r} is no name: letters, digits, . _ -")
            if not folder.startswith("/"):
                raise ValueError(f"files: {name} must be an absolute path")
        _check_groups(self.files_groups)
        for handler in self.handlers:
            if not _HANDLER_ID.fullmatch(handler) or handler.startswith(RESERVED_PREFIXES):
                raise ValueError(f"handlers: {handler!r} must be name@version, no built-in's name")
        for model in self.llm:
            if not _MODEL.fullmatch(model):
                raise ValueError(f"llm: {model!r} is no name: letters, digits, . _ / -")
        if not set(self.expr) <= {OWN, FRIENDS}:
            raise ValueError("expr: code is taken from `own` devices and `friends` only")
        files = (self.engines_ca, self.engines_cert, self.engines_key)
        if any(file and not file.startswith("/") for file in files):
            raise ValueError("engines_ca, engines_cert, engines_key must be absolute paths")
        for address in self.engines:
            _check_engine(address, tls=all(files))


def _check_engine(address: str, *, tls: bool) -> None:
    """Their client unpickles what it receives, so only this machine or a proven one is asked."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    plain = f"{parts.scheme}://{parts.netloc}" == address and "@" not in parts.netloc
    if port and plain and parts.scheme == "dask" and parts.hostname in _LOOPBACK:
        return
    if port and plain and parts.scheme == "tls" and parts.hostname:
        if not tls:
            raise ValueError(f"engines: {address} needs engines_ca, engines_cert and engines_key")
        return
    raise ValueError(f"engines: {address!r} must be dask://127.0.0.1:PORT or tls://HOST:PORT")
