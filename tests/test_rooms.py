"""Imports lead from a room to the rooms below it, and a name is that of one type."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "cli",  # the command line: reads a config, has the work done, shows it
    "advice",
    "curves",
    "predict",
    "train",
    "evaluate",
    "config",  # keys, kinds and defaults; `prepare` of the rooms above unpacks one, no room below knows of it
    "starts",  # where a backbone meets a dataset
    "checkpoints",
    "methods",
    "solvers",
    "objectives",
    "data",
    "models",
    "devices",
    "storage",
    "base",  # the files beside the rooms: tree, errors, files, kinds, texts, ...
)
"""From the top to the bottom. A room imports what is below it, within functions and for type checkers too."""

SOURCES = {path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "jtransfer").rglob("*.py"))}


def room_of(module):
    """The room of a dotted name: of `jtransfer.train.loop` it is `train`, of `jtransfer.tree` it is `base`."""
    first = module.split(".")[1:2]
    return first[0] if first and (ROOT / "jtransfer" / first[0]).is_dir() else "base"


def imports(source):
    """Line and dotted name of everything of ours that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{'.' * node.level}{node.module or ''}.{name.name}" for name in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name.startswith(("jtransfer", ".")))


def upward(room, source):
    """Of the imports in a source those that lead from its room to a room above; a relative one does not say where."""
    below = ROOMS[ROOMS.index(room) :]
    return [
        f"line {line}: {room} imports {name}"
        for line, name in imports(source)
        if name.startswith(".") or room_of(name) not in below
    ]


def types(source):
    """Names of the classes and the aliases of types that a source defines at its top."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():  # `Score = Callable[...]` is one, `ROOMS = (...)` is none
                yield name


def test_every_package_is_a_room_and_every_room_a_package():
    found = {path.parent.name for path in (ROOT / "jtransfer").glob("*/__init__.py")}
    assert found == set(ROOMS) - {"base"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_is_below_it_alone(room):
    own = {path: source for path, source in SOURCES.items() if room_of(".".join(path.with_suffix("").parts)) == room}
    assert own and [f"{path}, {said}" for path, source in own.items() for said in upward(room, source)] == []


@pytest.mark.parametrize(
    ("source", "offences"),
    [
        ("from jtransfer import models, methods", 1),
        ("from jtransfer.methods.lora import LoRA", 1),
        ("import jtransfer.train", 1),
        ("def f():\n    from jtransfer.checkpoints import load", 1),
        ("if TYPE_CHECKING:\n    from jtransfer.data import sources, streams", 2),
        ("from . import layers", 1),
        ("from jtransfer.models import layers\nfrom jtransfer.tree import flat\nimport jax", 0),
    ],
)
def test_an_import_of_a_model_from_above_is_found_wherever_it_stands(source, offences):
    assert len(upward("models", source)) == offences


def test_no_two_types_have_one_name():
    places = defaultdict(list)
    for path, source in SOURCES.items():
        for name in types(source):
            places[name].append(str(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_room_below_config_knows_of_a_configs_class():
    """What a config says comes down as plain values and frozen dataclasses."""
    knows = {path.parts[1] for path, source in SOURCES.items() if "ml_collections" in source}
    assert knows <= set(ROOMS[: ROOMS.index("config") + 1])
