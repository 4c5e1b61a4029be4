"""What README, docs and docstrings show can be typed: Python compiles and names what there is, and
commands name scripts and options that there are.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, load_script

FILES = [
    path
    for kind in ("py", "md")
    for path in (*ROOT.glob(f"*.{kind}"), *ROOT.glob(f"[!.]*/**/*.{kind}"))
    if path.relative_to(ROOT).parts[0] != "runs"  # a reader's own, ignored by git
]
THE_READERS = {"REPO", "network", "image"}  # what an example may use without making it
INSTALLED = {"sepbn": "models.sepbn"}  # pip gives the layer alone a name of its own
COMMAND = re.compile(r"python ([\w/]+\.py)((?: +(?:\\\n *)?[^\s`&|)]+)*)")


def docstrings(path: Path) -> Iterator[str]:
    """Every docstring of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            yield ast.get_docstring(node) or ""


def python_blocks(path: Path) -> Iterator[str]:
    """The Python examples of a file, those of a Markdown page as one."""
    if path.suffix == ".md":
        yield "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
        return

    for text in docstrings(path):
        yield "".join(example.source for example in doctest.DocTestParser().get_examples(text))
        for block in re.findall(r"(?:^    .*\n|^\n)+", text + "\n", re.MULTILINE):
            if re.search(r"^ +(from \S+ import |import |\w+ = \w+.*\()", block, re.MULTILINE):
                yield "\n".join(line.removeprefix("    ") for line in block.splitlines())


def unknown_names(tree: ast.Module) -> set[str]:
    """Names that are read, but neither made nor imported anywhere."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    made = {node.id for node in names if isinstance(node.ctx, ast.Store)} | set(dir(builtins))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            made |= {alias.asname or alias.name for alias in node.names}

    return {node.id for node in names} - made - THE_READERS


def test_python_examples_compile_and_name_what_there_is():
    found = 0

    for path in FILES:
        own = {"torch"} if path.suffix == ".py" else set()
        if path.suffix == ".py" and path.relative_to(ROOT).parts[0] != "tests":
            own |= {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}

        for block in filter(str.strip, python_blocks(path)):
            tree = ast.parse(block, filename=str(path))
            found += 1
            assert unknown_names(tree) <= own, f"{path}:\n{block}"

            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(INSTALLED.get(node.module, node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names), path

    assert found >= 4


def commands() -> dict[str, set[tuple[str, str]]]:
    """Script -> the options that an example gives it, each with the file of the example."""
    used: dict[str, set[tuple[str, str]]] = {}

    for path in FILES:
        if path.relative_to(ROOT).parts[0] == "tests":
            continue

        texts = [path.read_text()] if path.suffix == ".md" else docstrings(path)
        for script, arguments in COMMAND.findall("\n".join(texts)):
            options = used.setdefault(script, set())
            options |= {(word, path.name) for word in re.findall(r"--[a-z][\w-]*", arguments)}

    return used


@pytest.mark.parametrize("script", sorted(commands()))
def test_commands_name_options_that_there_are(script, capsys):
    source, options = (ROOT / script).read_text(), sorted(commands()[script])
    if options and "def main(" in source:
        with pytest.raises(SystemExit):
            load_script(script).main(["--help"])

    help = source + capsys.readouterr().out
    for option, page in options:
        assert re.search(rf"{option}\b", help), f"{page}: {script} has no {option}"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "README.md"])
def test_files_that_a_page_names_are_there(page):
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md|sh))`", (ROOT / page).read_text()))
    assert named and not [name for name in named if not (ROOT / name).exists()]
