"""Settings: from flags, environment, file and defaults, in this order.

Each package has a frozen dataclass of its own; this module alone reads files and the environment.
A key that no dataclass has is an error that names file, line and the nearest key, because a
misspelt limit that is silently ignored is found too late. Source: docs/guides/configuration.md.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeVar, cast

import msgspec

from daemon.config_decode import (
    Given,
    convert,
    field_types,
    flatten,
    line_of,
    load_toml,
    nearest,
)
from daemon.errors import ConfigError
from federated.jobs.config import JobsConfig
from memory.config import MemoryConfig
from p2p.blobs.config import BlobConfig
from p2p.config import P2pConfig
from p2p.dht.config import DhtConfig
from p2p.nat.lan_config import LanConfig
from p2p.nat.portmap_config import MapConfig
from p2p.nat.punch_config import PunchConfig
from p2p.nat.reachability_config import ReachabilityConfig
from p2p.nat.relay_config import RelayConfig
from p2p.replication.config import ReplicationConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,64}")


def _host_name() -> str:
    """This machine's name up to the first dot; the shown name of a new device."""
    return (socket.gethostname().split(".")[0] or "device")[:64]


@dataclass(frozen=True, kw_only=True)
class NodeConfig:
    """`[node]`: this machine."""

    name: str = dataclasses.field(default_factory=_host_name)
    """Name that the other devices see, at most 64 characters. It is shown, never trusted."""
    drain_s: float = 10.0
    """Seconds that requests in flight get when the daemon stops. Raising it delays `covey down`."""
    low_disk_bytes: int = 500 * 2**20
    """Below this much free space the daemon is `degraded` and says so."""
    battery_floor_percent: int = 20
    """On battery below this charge, no work for peers is taken."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name must be 1 to 64 printable characters")
        _at_least(self, drain_s=0, low_disk_bytes=0, battery_floor_percent=0)


@dataclass(frozen=True, kw_only=True)
class SecurityConfig:
    """`[security]`: what happens to secrets in texts."""

    secrets: Literal["redact", "reject", "allow"] = "redact"
    """Secrets in what is written here: put a mark in their place, refuse the note, or keep what
    the person at the terminal writes as it is (an agent's are still taken out)."""
    peer_secrets: Literal["redact", "allow"] = "redact"
    """Secrets in what other devices wrote, where it is shown or found; the signed record stays."""


@dataclass(frozen=True, kw_only=True)
class RpcConfig:
    """`[rpc]`: the local socket."""

    line_bytes_max: int = 16 * 2**20
    """Longest line a client may send. Raising it costs memory per connection."""
    in_flight_max: int = 64
    """Requests of one connection at work at once; more are left unread until one is done."""
    connections_max: int = 128
    """Connections at once; more are closed."""
    write_rate_per_s: float = 50.0
    """Writes a second that an agent may make on average; the person and imports are exempt."""
    write_burst: int = 500
    """Writes that an agent may make at once before the average counts."""
    read_rate_per_s: float = 200.0
    """Reads a second that an agent may make on average."""
    allow_uids: tuple[int, ...] = ()
    """User ids besides ours whose processes may connect. They can do whatever you can."""

    def __post_init__(self) -> None:
        _at_least(
            self, line_bytes_max=4096, in_flight_max=1, connections_max=1, write_burst=1,
            write_rate_per_s=0.001, read_rate_per_s=0.001,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class McpConfig:
    """`[mcp]`: what agents see."""

    profile: Literal["core", "standard", "readonly"] = "standard"
    """Which tools are listed: memory alone, all, or those that change nothing."""
    preload: Literal["auto", "always", "never"] = "auto"
    """When the MCP library is loaded: a second after the start if an agent is registered (auto)."""
    result_tokens_max: int = 2000
    """Longest answer of a tool in tokens (a token is counted as 3.6 bytes)."""
    line_bytes_max: int = 4 * 2**20
    """Longest line an MCP client may send."""

    def __post_init__(self) -> None:
        _at_least(self, result_tokens_max=100, line_bytes_max=4096)


@dataclass(frozen=True, kw_only=True)
class HooksConfig:
    """`[hooks]`: what agents are given unasked, once `covey connect CLIENT --hooks` was run."""

    tokens_max: int = 600
    """Longest text of a hook in tokens of 3.6 bytes, and never over 4,000 characters.
    Raising it costs the agent that much of its context on every prompt."""
    trust_min: float = 0.7
    """Least trust of what is shown, 0 to 1. Others' memories are never shown unasked."""
    timeout_ms: int = 150
    """A hook that has no answer by then says nothing. Raising it delays every prompt on a busy
    machine."""

    def __post_init__(self) -> None:
        _at_least(self, tokens_max=50, trust_min=0, timeout_ms=10)
        if self.trust_min > 1 or self.timeout_ms > 1500:
            raise ValueError("trust_min is at most 1, timeout_ms at most 1500")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """`[log]`: the log files in the state folder."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is written."""
    format: Literal["auto", "json", "text"] = "auto"
    """Form on standard error of `covey up --foreground`; auto: text on a terminal.
    Files are always JSON."""
    file_bytes: int = 10 * 2**20
    """Size at which a log file is put aside."""
    files: int = 5
    """How many log files are kept."""

    def __post_init__(self) -> None:
        _at_least(self, file_bytes=64 * 1024, files=1)


@dataclass(frozen=True, kw_only=True)
class BackupConfig:
    """`[backup]`: copies that the daemon makes by itself."""

    every_s: float = 24 * 3600.0
    """Time between two automatic backups; 0: none are made."""
    keep: int = 7
    """How many backups are kept; the oldest go first. Raising it costs a database's size each."""
    dir: str = ""
    """Folder for backups; empty: `backups` in the state folder. An erasure does not reach copies
    outside of the state folder."""

    def __post_init__(self) -> None:
        _at_least(self, every_s=0, keep=1)
        if 0 < self.every_s < 60:
            raise ValueError("every_s must be 0 or at least 60")
        if self.dir and not os.path.isabs(self.dir):
            raise ValueError("dir must be an absolute path")


def _at_least(config: object, **floors: float) -> None:
    for name, floor in floors.items():
        if cast("float", getattr(config, name)) < floor:
            raise ValueError(f"{name} must be at least {floor}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings in force, a dataclass a section.

    Attributes:
        origins: where each set value came from, by `section.key`; the others are defaults.
    """

    node: NodeConfig
    p2p: P2pConfig
    blobs: BlobConfig
    replication: ReplicationConfig
    memory: MemoryConfig
    security: SecurityConfig
    rpc: RpcConfig
    mcp: McpConfig
    hooks: HooksConfig
    log: LogConfig
    backup: BackupConfig
    jobs: JobsConfig
    origins: Mapping[str, str]

    def section(self, name: str) -> object:
        """The dataclass of a section.

        Raises:
            KeyError: there is no such section.
        """
        found: object = self
        for field in _FIELDS_OF[name]:
            found = cast("object", getattr(found, field))
        return found


SECTIONS: Final[Mapping[str, type]] = {
    "node": NodeConfig,
    "p2p": P2pConfig,
    "p2p.blobs": BlobConfig,
    "p2p.dht": DhtConfig,
    "p2p.lan": LanConfig,
    "p2p.mapping": MapConfig,
    "p2p.punch": PunchConfig,
    "p2p.reach": ReachabilityConfig,
    "p2p.relay": RelayConfig,
    "p2p.replication": ReplicationConfig,
    "memory": MemoryConfig,
    "security": SecurityConfig,
    "rpc": RpcConfig,
    "mcp": McpConfig,
    "hooks": HooksConfig,
    "log": LogConfig,
    "backup": BackupConfig,
    "jobs": JobsConfig,
}
_FIELDS_OF: Final[Mapping[str, Sequence[str]]] = {
    **{name: (name,) for name in SECTIONS},
    "p2p.blobs": ("blobs",),
    "p2p.dht": ("p2p", "dht"),
    "p2p.lan": ("p2p", "local_net"),
    "p2p.mapping": ("p2p", "mapping"),
    "p2p.punch": ("p2p", "punch"),
    "p2p.reach": ("p2p", "reach"),
    "p2p.relay": ("p2p", "relay"),
    "p2p.replication": ("replication",),
}
"""From `Config` to a section's dataclass."""
PRESETS: Final[Mapping[str, Callable[[], P2pConfig]]] = {
    "wan": P2pConfig.wan,
    "lan": P2pConfig.lan,
    "test": P2pConfig.test,
}
# `[p2p] preset` chooses where the other values of the section start, so it is no field itself.
PRESET_KEY: Final = "preset"
_ENV: Final = re.compile(r"COVEY_([A-Z0-9_]+?)__([A-Z0-9_]+)")
_DATACLASS = TypeVar("_DATACLASS")


def keys_of(section: str) -> dict[str, object]:
    """Types of a section's keys by name."""
    kinds = field_types(SECTIONS[section])
    return {PRESET_KEY: Literal["wan", "lan", "test"], **kinds} if section == "p2p" else kinds


def _check_known(section: str, key: str, where: str) -> None:
    if section not in SECTIONS:
        name = section or key
        raise ConfigError(f"{where}: unknown section [{name}]{nearest(name, SECTIONS)}")
    keys = keys_of(section)
    if key not in keys:
        raise ConfigError(f"{where}: unknown key [{section}] {key}{nearest(key, keys)}")


def _from_file(text: str, name: str) -> dict[tuple[str, str], Given]:
    found: dict[tuple[str, str], Given] = {}
    for section, key, value in flatten(load_toml(text, name), SECTIONS):
        line = line_of(text, section, key)
        where = f"{name}:{line}" if line else name
        _check_known(section, key, where)
        found[section, key] = Given(value=value, where=where, origin="file")
    return found


def _from_env(environ: Mapping[str, str]) -> dict[tuple[str, str], Given]:
    sections = {name.replace(".", "_").upper(): name for name in SECTIONS}
    found: dict[tuple[str, str], Given] = {}
    for variable, value in sorted(environ.items()):
        match = _ENV.fullmatch(variable)
        if match is None:
            continue
        section, key = sections.get(match[1], match[1].lower()), match[2].lower()
        _check_known(section, key, variable)
        found[section, key] = Given(value=value, where=variable, origin="env")
    return found


def _from_flags(flags: Sequence[str]) -> dict[tuple[str, str], Given]:
    found: dict[tuple[str, str], Given] = {}
    for flag in flags:
        name, separator, value = flag.partition("=")
        section, dot, key = name.strip().rpartition(".")
        if not separator or not dot:
            raise ConfigError(
                f"{name.strip()}: a setting is written section.key; `covey config show` lists them"
            )
        _check_known(section, key, f"--set {name}")
        found[section, key] = Given(value=value, where=f"--set {name}", origin="flag")
    return found


def _build(base: _DATACLASS, section: str, given: Mapping[tuple[str, str], Given]) -> _DATACLASS:
    kinds = field_types(type(base))
    values: dict[str, object] = {}
    places: dict[str, Given] = {}
    for (name, key), item in given.items():
        if name != section or key not in kinds:
            continue
        try:
            values[key] = convert(key, kinds[key], item.value, text=item.origin != "file")
        except ValueError as error:
            raise ConfigError(f"{item.where}: [{section}] {key} {error}") from None
        places[key] = item
    try:
        return cast("_DATACLASS", _replace(base, values))
    except Exception as error:  # noqa: BLE001 - each package raises its own kind from its checks
        culprit = _culprit(base, values, places)
        raise ConfigError(f"{culprit}: [{section}] {error}") from None


def _culprit(base: object, values: Mapping[str, object], places: Mapping[str, Given]) -> str:
    """Place of the value that breaks a rule: the first that does so together with those before."""
    taken: dict[str, object] = {}
    for key, value in values.items():
        taken[key] = value
        try:
            _replace(base, taken)
        except Exception:  # noqa: BLE001 - only asks whether it fails
            return places[key].where
    return ", ".join(place.where for place in places.values())


def _replace(base: object, values: Mapping[str, object]) -> object:
    if isinstance(base, msgspec.Struct):
        return msgspec.structs.replace(base, **values)
    if not dataclasses.is_dataclass(base) or isinstance(base, type):
        raise TypeError("a section must be a dataclass")
    return dataclasses.replace(base, **values)


def decode(
    text: str,
    *,
    name: str = "config.toml",
    environ: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> Config:
    """Settings from a file's text, variables and flags.

    Args:
        text: TOML, may be empty.
        name: the file's name in messages.
        environ: variables `COVEY_<SECTION>__<KEY>`; None for none.
        flags: `section.key=value`, strongest.

    Raises:
        ConfigError: an unknown key or a value that does not fit; it names the place.
    """
    given = _from_file(text, name) | _from_env(environ or {}) | _from_flags(flags)
    preset = given.get(("p2p", PRESET_KEY))
    if preset is not None and preset.value not in PRESETS:
        raise ConfigError(f"{preset.where}: [p2p] preset must be one of {', '.join(PRESETS)}")
    start = PRESETS[str(preset.value) if preset else "wan"]()
    start = dataclasses.replace(
        start,
        dht=_build(start.dht, "p2p.dht", given),
        local_net=_build(start.local_net, "p2p.lan", given),
        mapping=_build(start.mapping, "p2p.mapping", given),
        punch=_build(start.punch, "p2p.punch", given),
        reach=_build(start.reach, "p2p.reach", given),
        relay=_build(start.relay, "p2p.relay", given),
    )
    return Config(
        node=_build(NodeConfig(), "node", given),
        p2p=_build(start, "p2p", given),
        blobs=_build(BlobConfig(), "p2p.blobs", given),
        replication=_build(ReplicationConfig(), "p2p.replication", given),
        memory=_build(MemoryConfig(), "memory", given),
        security=_build(SecurityConfig(), "security", given),
        rpc=_build(RpcConfig(), "rpc", given),
        mcp=_build(McpConfig(), "mcp", given),
        hooks=_build(HooksConfig(), "hooks", given),
        log=_build(LogConfig(), "log", given),
        backup=_build(BackupConfig(), "backup", given),
        jobs=_build(JobsConfig(), "jobs", given),
        origins={f"{section}.{key}": item.where for (section, key), item in given.items()},
    )


def load(
    path: str, *, environ: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> Config:
    """Settings of this machine; a missing file is an empty one.

    Args:
        path: the configuration file.
        environ: default the process's environment.
        flags: `section.key=value`.

    Raises:
        ConfigError: see `decode`; also a file that cannot be read.
    """
    return decode(
        read_text(path), name=path, environ=os.environ if environ is None else environ, flags=flags
    )


def read_text(path: str) -> str:
    """The file's text, empty if there is no file.

    Raises:
        ConfigError: it cannot be read or is not UTF-8.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from None


def differences(old: Config, new: Config) -> list[str]:
    """`section.key` of settings that differ."""
    changed: list[str] = []
    for section in SECTIONS:
        before, after = old.section(section), new.section(section)
        changed += [
            f"{section}.{key}"
            for key in field_types(SECTIONS[section])
            if getattr(before, key) != getattr(after, key)
        ]
    return changed
