"""Training data that every Python brings along: docstring -> function, from its own standard library."""

import ast
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_CHARACTERS = 350  # request and answer, under 192 tokens: a step of a few pairs takes seconds on two cores
MIN_CODE_LINES = 3  # with the signature, so that there is something to learn
SKIPPED_DIRECTORIES = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}


@dataclass(frozen=True)
class Pair:
    """One function of the standard library.

    Attributes:
        name: module path and function, such as "textwrap.py:dedent".
        request: what the user asks.
        answer: the function without its docstring, in a code fence.
    """

    name: str
    request: str
    answer: str

    def as_record(self) -> dict[str, list[dict[str, str]]]:
        turns = (("user", self.request), ("assistant", self.answer))
        return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_pairs(path: Path) -> int:
    """Write all pairs as JSONL of `messages`; returns their number."""
    records = [pair.as_record() for pair in find_pairs(Path(sysconfig.get_path("stdlib")))]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return len(records)


def request_for(signature: str, docstring: str) -> str:
    """What the user asks for a function."""
    return f"Write a Python function `{signature}`.\n\n{docstring}"


def find_pairs(root: Path) -> Iterator[Pair]:
    """Short documented module-level functions of all modules under `root`, in the order of their paths."""
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_DIRECTORIES.isdisjoint(relative.parts):
            try:
                source = path.read_text(encoding="utf-8")
                tree = ast.parse(source)
            except (OSError, ValueError, SyntaxError):  # a few files are not UTF-8 or not Python on purpose
                continue
            yield from _pairs_of_module(relative.as_posix(), source, tree)


def _pairs_of_module(module: str, source: str, tree: ast.Module) -> Iterator[Pair]:
    lines = source.splitlines()
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
            continue
        docstring = ast.get_docstring(function)
        if not docstring or not docstring.isascii() or len(function.body) == 1:
            continue
        code = _without_docstring(function, lines)
        request = request_for(f"{function.name}({ast.unparse(function.args)})", docstring)
        pair = Pair(f"{module}:{function.name}", request, f"```python\n{code}\n```")
        if len(code.splitlines()) >= MIN_CODE_LINES and len(pair.request) + len(pair.answer) <= MAX_CHARACTERS:
            yield pair


def _without_docstring(function: ast.FunctionDef, lines: list[str]) -> str:
    """The function's lines but for those of its docstring (sliced: `ast.get_source_segment` is slow)."""
    docstring = function.body[0]
    assert docstring.end_lineno is not None and function.end_lineno is not None
    kept = lines[function.lineno - 1 : docstring.lineno - 1] + lines[docstring.end_lineno : function.end_lineno]
    return "\n".join(kept).strip()
