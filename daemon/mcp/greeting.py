"""How a relay introduces itself. Light: `json` and `os`."""

from __future__ import annotations

import json
import os

from daemon.cli.client import AGENT_MARKS
from daemon.project import project_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.paths import Paths

AGENT_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
AGENT_CHARS_MAX = 64
SESSION_CHARS = frozenset("0123456789abcdef-")
SESSION_CHARS_MAX = 40


def agent_name(environ: Mapping[str, str]) -> str:
    """Whose hands we are in.

    A relay is always in the hands of an agent, never of the person: without a name in the
    environment it is called after the mark of its client, or plainly `mcp`.
    """
    given = environ.get("COVEY_AGENT", "")
    usable = 0 < len(given) <= AGENT_CHARS_MAX and AGENT_CHARS.issuperset(given)
    # The name becomes part of a path: it may not begin like `.` or `..`.
    if usable and given[0] not in "._-":
        return given
    return next((name for mark, name in AGENT_MARKS if environ.get(mark)), "mcp")


def session_id(environ: Mapping[str, str]) -> str:
    """The agent's own session id if it tells one, made unique for this process."""
    told = environ.get("CLAUDE_CODE_SESSION_ID", "").lower()
    if told and len(told) <= SESSION_CHARS_MAX and SESSION_CHARS.issuperset(told):
        # Two relays of one session number their requests alike; their receipts must not mix.
        return f"{told}-{os.urandom(8).hex()}"  # noqa: TID251 - no Env in this process
    return os.urandom(16).hex()  # noqa: TID251 - no Env in this process


def make_hello(environ: Mapping[str, str], where: Paths, folder: str) -> bytes:
    """The first line of a connection, without newline.

    Args:
        environ: of the process.
        where: the node's files.
        folder: where the agent works.
    """
    agent = agent_name(environ)
    token = environ.get("COVEY_GRANT", "")
    if not token:
        # The configuration of a project is often committed, so it holds no token.
        try:
            with open(where.agent_token(agent), encoding="ascii") as file:
                token = file.read(256).strip()
        except (OSError, ValueError):
            token = ""
    params = {
        "client": "covey mcp",
        "api": [1, 0],
        "dialect": "mcp",
        "agent": agent,
        "token": token,
        "session": session_id(environ),
        "project": project_of(environ.get("CLAUDE_PROJECT_DIR") or folder),
    }
    return json.dumps({"jsonrpc": "2.0", "id": 0, "method": "rpc.hello", "params": params}).encode()
