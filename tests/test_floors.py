"""The floors of the package: a module imports only its own floor and what is below."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from omi_rt.settings_table import settings_table

PACKAGE = Path(__file__).parent.parent / "omi_rt"

# From the ground up. A module belongs to the longest prefix that fits.
FLOORS = [
    {"omi_rt"},
    {"omi_rt.core"},
    {"omi_rt.faces"},
    {
        "omi_rt.bucket",
        "omi_rt.files",
        "omi_rt.lines",
        "omi_rt.log",
        "omi_rt.metrics",
        "omi_rt.setting_forms",
        "omi_rt.settings",
        "omi_rt.settings_table",
        "omi_rt.light_event",
        "omi_rt.timers",
        "omi_rt.net",
        "omi_rt.codecs",
    },
    {
        "omi_rt.auth",
        "omi_rt.profiles",
        "omi_rt.webhooks",
        "omi_rt.records",
        "omi_rt.fake",
        "omi_rt.local",
        "omi_rt.client",
    },
    {"omi_rt.deepgram"},
    {"omi_rt.server"},
    {"omi_rt.demo", "omi_rt.cuts"},
    {"omi_rt.cli", "omi_rt.__main__"},
]
ONE_IMPORTER = {
    "cachetools",
    "cryptography",
    "click",
    "faster_whisper",
    "google",
    "httpx",
    "jwt",
    "onnxruntime",
    "msgspec",
    "opuslib",
    "orjson",
    "pocketsphinx",
    "prometheus_client",
    "rich",
    "soundfile",
    "soxr",
    "structlog",
    "trio_util",
    "trio_websocket",
    "websockets",
}
PURE = ("omi_rt.core", "omi_rt.faces")
IMPURE_LIBRARIES = {"trio", "socket", "ssl", "threading", "subprocess", "time", "asyncio"}


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), filename=str(path))
    return found


def imports(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(module: str) -> int:
    while module:
        for number, names in enumerate(FLOORS):
            if module in names and (module != "omi_rt" or number == 0):
                return number
        module = module.rpartition(".")[0]
    raise AssertionError("every module has a floor")


def test_no_module_imports_from_a_floor_above() -> None:
    upward = [
        f"{name} imports {imported}"
        for name, tree in modules().items()
        for imported in imports(tree)
        if imported.startswith("omi_rt.") and floor_of(imported) > floor_of(name)
    ]
    assert upward == []


def test_every_module_has_a_floor_of_its_own() -> None:
    ground = [name for name in modules() if floor_of(name) == 0]
    assert ground == ["omi_rt"]


def test_the_modules_import_each_other_without_a_cycle() -> None:
    trees = modules()
    graph = {name: {i for i in imports(tree) if i in trees} for name, tree in trees.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for imported in graph[name]:
                visit(imported, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_the_pure_floor_knows_no_trio_no_sockets_and_no_clock() -> None:
    impure = [
        f"{name} imports {imported}"
        for name, tree in modules().items()
        if name.startswith(PURE)
        for imported in imports(tree)
        if imported.partition(".")[0] in IMPURE_LIBRARIES
    ]
    assert impure == []


def test_each_outside_library_is_imported_in_one_file() -> None:
    importers = defaultdict(set)
    for name, tree in modules().items():
        for imported in imports(tree):
            library = imported.partition(".")[0]
            if library in ONE_IMPORTER:
                importers[library].add(name)
    assert {library: names for library, names in importers.items() if len(names) > 1} == {}


def test_no_function_is_longer_than_sixty_lines() -> None:
    too_long = {
        f"{name}.{node.name}": lines
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert too_long == {}


def test_the_readme_lists_every_setting_as_it_is() -> None:
    readme = (PACKAGE.parent / "README.md").read_text()
    rows = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {text} |"
        for name, default, text in settings_table()
    ]
    table = "\n".join(["| variable | default | |", "|---|---|---|", *rows])
    assert f"<!-- settings -->\n{table}\n<!-- /settings -->" in readme
