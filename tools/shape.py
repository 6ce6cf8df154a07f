"""`make shape`: the numbers a reviewer looks at first, per package. Nothing here fails a build."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGES: Final = ("p2p", "memory", "federated", "daemon")
MODULE_LINES_REMARK: Final = 500
FUNCTION_LINES_REMARK: Final = 70


@dataclass
class Shape:
    """Counts over some files."""

    module_lines: dict[str, int] = field(default_factory=dict)
    function_lines: dict[str, int] = field(default_factory=dict)
    comments: int = 0
    asserts: int = 0
    public: int = 0
    documented: int = 0
    exceptions: int = 0

    def add(self, path: Path) -> None:
        """Count one module."""
        text = path.read_text("utf-8")
        name = str(path.relative_to(ROOT))
        self.module_lines[name] = text.count("\n")
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        self.comments += sum(token.type == tokenize.COMMENT for token in tokens)
        for node in ast.walk(ast.parse(text)):
            self._add_node(name, node)

    def _add_node(self, module: str, node: ast.AST) -> None:
        if isinstance(node, ast.Assert):
            self.asserts += 1
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            self.function_lines[f"{module}:{node.lineno} {node.name}"] = lines
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("_"):
                self.public += 1
                self.documented += ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef):
                self.exceptions += any(
                    isinstance(base, ast.Name) and base.id.endswith(("Error", "Exception"))
                    for base in node.bases
                )

    @property
    def lines(self) -> int:
        """All lines."""
        return sum(self.module_lines.values())


def percentile(values: list[int], share: float) -> int:
    """Nearest rank; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def spread(values: list[int]) -> str:
    """Median / p90 / max."""
    return f"{percentile(values, 0.5)} / {percentile(values, 0.9)} / {max(values, default=0)}"


def shape_of(folder: str) -> Shape:
    """Count all modules below `folder`."""
    shape = Shape()
    for path in sorted((ROOT / folder).rglob("*.py")):
        if "node_modules" not in path.parts:
            shape.add(path)
    return shape


def main() -> int:
    """Print the table and the places worth a look."""
    shapes = {name: shape_of(name) for name in PACKAGES}
    tests = shape_of("tests")
    print(f"{'package':10} {'lines':>6} {'module lines':>16} {'function lines':>15}"
          f" {'comments/1k':>11} {'asserts/1k':>10} {'docstrings':>10} {'errors':>6}")  # fmt: skip
    for name, shape in [*shapes.items(), ("tests", tests)]:
        per_1k = 1000 / max(1, shape.lines)
        print(
            f"{name:10} {shape.lines:6} {spread(list(shape.module_lines.values())):>16} "
            f"{spread(list(shape.function_lines.values())):>15} {shape.comments * per_1k:11.0f} "
            f"{shape.asserts * per_1k:10.1f} "
            f"{100 * shape.documented / max(1, shape.public):9.0f}% {shape.exceptions:6}"
        )
    source = sum(shape.lines for shape in shapes.values())
    print(f"tests : source = {tests.lines / max(1, source):.2f}")
    for shape in shapes.values():
        for name, lines in shape.module_lines.items():
            if lines > MODULE_LINES_REMARK:
                print(f"long module   {lines:5} {name}")
        for name, lines in shape.function_lines.items():
            if lines > FUNCTION_LINES_REMARK:
                print(f"long function {lines:5} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
