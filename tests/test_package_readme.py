"""What omi_rt/README.md says of the code is so: its names, its phase table, its example."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omi_rt.core.phase import TRANSITIONS, Phase, Step

if TYPE_CHECKING:
    from trio.testing import MockClock

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "omi_rt"
README = (PACKAGE / "README.md").read_text()
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
NAMED = set(re.findall(r"`([^`]+)`", PROSE))


def assigned(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    return {ast.unparse(target).removeprefix("self.") for target in targets}


def definitions() -> tuple[set[str], dict[str, set[str]]]:
    """The names that modules define, and the members of each class."""
    names: set[str] = set()
    members: defaultdict[str, set[str]] = defaultdict(set)
    for path in [*PACKAGE.rglob("*.py"), ROOT / "tests" / "harness.py"]:
        for node in ast.parse(path.read_text()).body:
            names |= assigned(node)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            if isinstance(node, ast.ClassDef):
                for each in ast.walk(node):
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                        members[node.name].add(each.name)
                    elif isinstance(each, ast.Assign | ast.AnnAssign):
                        members[node.name] |= assigned(each)
    return names, members


def test_every_file_that_it_names_is_there() -> None:
    files = {name for name in NAMED if re.fullmatch(r"[\w/]+\.py", name)}
    assert len(files) > 50
    missing = [
        name for name in files if not (PACKAGE / name).is_file() and not (ROOT / name).is_file()
    ]
    assert missing == []


def test_every_function_class_and_member_that_it_names_is_there() -> None:
    names, members = definitions()
    functions = {name.removesuffix("()") for name in NAMED if re.fullmatch(r"[a-z]\w+\(\)", name)}
    classes = {name for name in NAMED if re.fullmatch(r"[A-Z][a-z]\w*", name)}
    constants = {name for name in NAMED if re.fullmatch(r"[A-Z]+_[A-Z_]+", name)}
    constants = {name for name in constants if not name.startswith("OMI_RT_")}
    dotted = {name for name in NAMED if re.fullmatch(r"[A-Z]\w+\.\w+", name)}
    assert min(len(functions), len(classes), len(constants), len(dotted)) > 2
    assert sorted((functions | classes | constants) - names) == []
    missing = [name for name in dotted if name.split(".")[1] not in members[name.split(".")[0]]]
    assert missing == []


def test_its_phase_table_is_the_one_in_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z]+) \| [^|]+ \| ([^|]*) ?\|$", README, re.MULTILINE)
    table = {
        Phase[phase]: {
            Step[step]: Phase[after] for step, after in re.findall(r"(\w+) → (\w+)", steps)
        }
        for phase, steps in rows
    }
    assert table == TRANSITIONS


async def test_its_example_of_a_test_runs(autojump_clock: MockClock) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    namespace: dict[str, Any] = {}
    exec(compile(example, "omi_rt/README.md", "exec"), namespace)
    (test,) = [value for name, value in namespace.items() if name.startswith("test_")]
    await test(autojump_clock)
