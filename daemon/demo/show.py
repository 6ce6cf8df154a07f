"""What the viewer sees: numbered steps, checks with times, and a verdict at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from p2p.env import Env


class Show:
    """Prints the demo and keeps the score.

    Args:
        env: the clock of the times shown.
    """

    def __init__(self, env: Env) -> None:
        self.console = Console(highlight=False)
        self._env = env
        self._began_s = env.now()
        self._step = 0
        self._failed: list[str] = []
        self._checks = 0

    def title(self, text: str, under: str) -> None:
        """The first thing on the screen."""
        body = Text.assemble((text, "bold"), "\n", (under, "dim"))
        self.console.print(Panel(body, border_style="cyan", expand=False, padding=(0, 2)))

    def step(self, text: str) -> None:
        """A new step begins."""
        self._step += 1
        self.console.print()
        self.console.print(Text.assemble((f"{self._step}  ", "bold cyan"), (text, "bold")))

    def note(self, text: str) -> None:
        """Something worth reading that is no check."""
        self.console.print(Text(f"     {text}", style="dim"))

    def check(self, text: str, held: object, since_s: float | None = None) -> None:
        """A statement that held or did not, with the time it took."""
        self._checks += 1
        mark, style = ("✓", "green") if held else ("✗", "bold red")
        took = "" if since_s is None else f"  {_span(self._env.now() - since_s)}"
        self.console.print(Text.assemble("   ", (mark, style), f" {text}", (took, "dim")))
        if not held:
            self._failed.append(f"step {self._step}: {text}")

    def hits(self, rows: list[tuple[str, str, str, str]]) -> None:
        """Recalled memories: text, author, device, trust."""
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        for heading in ("    trust", "author", "device", "memory"):
            table.add_column(heading, style="bold" if heading == "memory" else "", overflow="fold")
        for text, author, device, trust in rows:
            table.add_row(f"    {trust}", author, device, text)
        self.console.print(table)

    def verdict(self) -> int:
        """The last lines; the exit code."""
        seconds = self._env.now() - self._began_s
        self.console.print()
        if self._failed:
            self.console.print(
                Text(f"{len(self._failed)} of {self._checks} checks failed:", "bold red")
            )
            for text in self._failed:
                self.console.print(Text(f"  {text}", "red"))
            return 1
        self.console.print(
            Text(f"All {self._checks} checks held, in {seconds:.0f} s.", style="bold green")
        )
        return 0


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
