"""`config.*`: the settings in force."""

from __future__ import annotations

import msgspec

from daemon.config import SECTIONS, keys_of
from daemon.config_text import SettingRow, settings_of
from daemon.errors import RpcError
from daemon.rpc.registry import Call, Empty, method


class KeyParams(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A setting as `section.key`."""

    key: str


@method("config.show", scope="admin")
async def show(call: Call, p: Empty) -> list[SettingRow]:
    """Show all settings in force and where each came from."""
    del p
    return settings_of(call.services.config)


@method("config.get", scope="admin")
async def get(call: Call, p: KeyParams) -> SettingRow:
    """Show one setting in force."""
    section, _, key = p.key.rpartition(".")
    if section not in SECTIONS or key not in keys_of(section):
        raise RpcError("not_found", "no such setting", remedy="`covey config show` lists them.")
    return next(row for row in settings_of(call.services.config) if row.name == p.key)
