"""The agents that `covey connect` knows: where each keeps its MCP servers, and in what form.

Pure data and path arithmetic; the forms are rendered by `daemon.connect.render`. Files and forms as
the npm package `add-mcp` 2.4.0 writes them; only those of Claude Code, Codex and Gemini were also
run. Source: daemon.md 7, docs/guides/connect.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Form: TypeAlias = Literal["json", "toml", "yaml"]
"""Syntax of a client's file."""

Style: TypeAlias = Literal["mcpServers", "servers", "context_servers", "mcp", "extensions", "codex"]
"""Where in the file our entry stands, and how it is shaped."""


class Client(NamedTuple):
    """One agent program.

    Attributes:
        name: as `covey connect NAME` takes it.
        title: as people know it.
        style: shape of the entry.
        form: syntax of the file.
        linux: user file on Linux; `~`, `$NAME` and `${NAME:-default}` are filled in.
        macos: on macOS, when it differs.
        windows: on Windows, when it differs.
        project: file in a project, empty when there is none.
        extra: fields besides command, args and env.
        command: the client's own way to add a server, empty when it has none; `{env}` stands for
            the environment in its syntax, `{command}` for our path, `{json}` for the whole entry.
        env_flag: how `command` writes one environment variable.
        removal: the client's own way to take the server out again, empty when it has none.
        hooks: file of its hooks, empty when it has none that we know.
        note: what else to do, for people.
    """

    name: str
    title: str
    style: Style
    form: Form
    linux: str
    macos: str = ""
    windows: str = ""
    project: str = ""
    extra: tuple[tuple[str, str | bool | int | tuple[str, ...]], ...] = ()
    command: str = ""
    env_flag: str = ""
    removal: str = ""
    hooks: str = ""
    note: str = ""


STDIO: Final = (("type", "stdio"),)

_VSCODE_STORAGE: Final = "globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"

_ALL: Final = (
    Client(
        "claude-code",
        "Claude Code",
        "mcpServers",
        "json",
        "${CLAUDE_CONFIG_DIR:-~}/.claude.json",
        project=".mcp.json",
        extra=STDIO,
        command="claude mcp add --scope user covey {env}-- {command} mcp",
        env_flag="-e {name}={value}",
        removal="claude mcp remove --scope user covey",
        hooks="${CLAUDE_CONFIG_DIR:-~/.claude}/settings.json",
    ),
    Client(
        "claude-desktop",
        "Claude Desktop",
        "mcpServers",
        "json",
        "${XDG_CONFIG_HOME:-~/.config}/Claude/claude_desktop_config.json",
        macos="~/Library/Application Support/Claude/claude_desktop_config.json",
        windows="%APPDATA%\\Claude\\claude_desktop_config.json",
        note="Quit and start Claude Desktop afterwards; closing its window is not enough.",
    ),
    Client(
        "codex",
        "Codex",
        "codex",
        "toml",
        "${CODEX_HOME:-~/.codex}/config.toml",
        project=".codex/config.toml",
        command="codex mcp add covey {env}-- {command} mcp",
        env_flag="--env {name}={value}",
        removal="codex mcp remove covey",
        hooks="${CODEX_HOME:-~/.codex}/hooks.json",
        note="A project file counts in trusted projects only.",
    ),
    Client(
        "cursor", "Cursor", "mcpServers", "json", "~/.cursor/mcp.json", project=".cursor/mcp.json"
    ),
    Client(
        "vscode",
        "Visual Studio Code",
        "servers",
        "json",
        "${XDG_CONFIG_HOME:-~/.config}/Code/User/mcp.json",
        macos="~/Library/Application Support/Code/User/mcp.json",
        windows="%APPDATA%\\Code\\User\\mcp.json",
        project=".vscode/mcp.json",
        extra=STDIO,
        command="code --add-mcp {json}",
    ),
    Client(
        "copilot-cli",
        "GitHub Copilot CLI",
        "mcpServers",
        "json",
        "${XDG_CONFIG_HOME:-~/.copilot}/mcp-config.json",
        project=".mcp.json",
        extra=(*STDIO, ("tools", ("*",))),
    ),
    Client(
        "gemini",
        "Gemini CLI",
        "mcpServers",
        "json",
        "~/.gemini/settings.json",
        project=".gemini/settings.json",
        command="gemini mcp add -s user {env}covey {command} mcp",
        env_flag="-e {name}={value}",
        removal="gemini mcp remove -s user covey",
        note="Servers run in trusted folders only.",
    ),
    Client(
        "zed",
        "Zed",
        "context_servers",
        "json",
        "${XDG_CONFIG_HOME:-~/.config}/zed/settings.json",
        macos="~/Library/Application Support/Zed/settings.json",
        project=".zed/settings.json",
        extra=(("source", "custom"),),
    ),
    Client("antigravity", "Antigravity", "mcpServers", "json", "~/.gemini/config/mcp_config.json"),
    Client("windsurf", "Windsurf", "mcpServers", "json", "~/.codeium/windsurf/mcp_config.json"),
    Client(
        "cline",
        "Cline in Visual Studio Code",
        "mcpServers",
        "json",
        f"${{XDG_CONFIG_HOME:-~/.config}}/Code/User/{_VSCODE_STORAGE}",
        macos=f"~/Library/Application Support/Code/User/{_VSCODE_STORAGE}",
        windows="%APPDATA%\\Code\\User\\" + _VSCODE_STORAGE.replace("/", "\\"),
        extra=(("disabled", False),),
    ),
    Client(
        "cline-cli",
        "Cline CLI",
        "mcpServers",
        "json",
        "${CLINE_DIR:-~/.cline}/data/settings/cline_mcp_settings.json",
        extra=(("disabled", False),),
    ),
    Client(
        "opencode",
        "opencode",
        "mcp",
        "json",
        "${XDG_CONFIG_HOME:-~/.config}/opencode/opencode.json",
        project="opencode.json",
        note="If there is an opencode.jsonc, put it there.",
    ),
    Client(
        "kilo",
        "Kilo Code",
        "mcp",
        "json",
        "${XDG_CONFIG_HOME:-~/.config}/kilo/kilo.json",
        project=".kilo/kilo.json",
        note="If there is a kilo.jsonc, put it there.",
    ),
    Client(
        "goose",
        "Goose",
        "extensions",
        "yaml",
        "${XDG_CONFIG_HOME:-~/.config}/goose/config.yaml",
        windows="%APPDATA%\\Block\\goose\\config\\config.yaml",
    ),
    Client(
        "kimi",
        "Kimi Code",
        "mcpServers",
        "json",
        "${KIMI_CODE_HOME:-~/.kimi-code}/mcp.json",
        project=".kimi-code/mcp.json",
        extra=(("transport", "stdio"),),
    ),
    Client(
        "grok",
        "Grok CLI",
        "codex",
        "toml",
        "${GROK_HOME:-~/.grok}/config.toml",
        project=".grok/config.toml",
    ),
    Client(
        "pi",
        "Pi",
        "mcpServers",
        "json",
        "${PI_CODING_AGENT_DIR:-~/.pi/agent}/mcp.json",
        project=".pi/mcp.json",
    ),
    Client(
        "kiro",
        "Kiro",
        "mcpServers",
        "json",
        "~/.kiro/settings/mcp.json",
        project=".kiro/settings/mcp.json",
    ),
)

CLIENTS: Final[Mapping[str, Client]] = {client.name: client for client in _ALL}
"""By name, in the order they are listed."""

AUTOMATIC: Final = ("claude-code", "codex", "cursor", "vscode", "gemini")
"""Those whose configuration `covey connect` writes itself; the others are told what to write."""


def user_file(client: Client, platform: str, environ: Mapping[str, str]) -> str:
    """Path of the client's user file on this machine.

    Args:
        client: which.
        platform: `sys.platform`.
        environ: for `$NAME`, `~` (from HOME) and `%APPDATA%`; a missing HOME leaves `~` standing.
    """
    if platform == "win32":
        template = client.windows or client.linux
    elif platform == "darwin":
        template = client.macos or client.linux
    else:
        template = client.linux
    return _fill(template, environ)


def hooks_file(client: Client, environ: Mapping[str, str]) -> str:
    """Path of the client's file of hooks; empty when it has none."""
    return _fill(client.hooks, environ)


def _fill(template: str, environ: Mapping[str, str]) -> str:
    path = template.replace("%APPDATA%", environ.get("APPDATA", "%APPDATA%"))
    if path.startswith("${"):
        variable, _, rest = path[2:].partition("}")
        name, _, default = variable.partition(":-")
        path = (environ.get(name) or default) + rest
    if path.startswith("~/") and environ.get("HOME"):
        path = environ["HOME"].rstrip("/") + path[1:]
    return path
