"""Modules of the user's own: where they are found, how they are imported, and the digest of their source.

A config names a part of such a module as `my_methods.houlsby(width=16)`. The module is looked for beside the config, in
the working directory, and among what is installed. Only what the user says is imported; whoever reads a text from a
directory wraps the reading in `trusting`.
"""

import ast
import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import site
import sys
import sysconfig
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from jtransfer import kinds
from jtransfer.errors import InputError, MachineError, cut, nearest, said

OURS = __name__.partition(".")[0]
SHARED = (
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
)
"""Folders in which modules that have nothing to do with each other lie side by side."""


@dataclass(frozen=True)
class Trust:
    """What may be imported while texts come from a directory, and not from the user.

    Attributes:
        modules: Names of the modules that may be imported, each with the modules in it.
        of: What names modules, as "workdir runs/theirs".
        words: How a user allows a module, as "--trust={0}".
    """

    modules: tuple[str, ...]
    of: str
    words: str


@dataclass(frozen=True)
class Source:
    """The source of a module.

    Attributes:
        folder: The folder that Python has to look in to find the module.
        file: The file of the module itself.
        files: Files by the names of their modules: of the module, of the packages around it, and of what these import
            from the folder, at once or in their functions.
    """

    folder: str
    file: str
    files: Mapping[str, str]

    def digest(self) -> str:
        """16 hexadecimal digits over the names and contents of all files."""
        parts = [[name, hashlib.sha256(_read(file)).hexdigest()] for name, file in sorted(self.files.items())]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


_folders: ContextVar[tuple[str, ...]] = ContextVar("folders", default=())
_trust: ContextVar[tuple[Trust, ...]] = ContextVar("trust", default=())
_digests: weakref.WeakKeyDictionary[ModuleType, str] = weakref.WeakKeyDictionary()
"""Of each module that a text has named, the digest of the source that was imported."""
_places: weakref.WeakKeyDictionary[ModuleType, str] = weakref.WeakKeyDictionary()
"""Of each of these modules, the folder that Python had to look in."""


@contextlib.contextmanager
def beside(folder: str | os.PathLike) -> Iterator[None]:
    """Within this block modules are looked for in a folder first, as in that of the config."""
    before = _folders.set((os.path.abspath(folder), *_folders.get()))
    try:
        yield
    finally:
        _folders.reset(before)


@contextlib.contextmanager
def trusting(modules: Iterable[str], of: str, words: str) -> Iterator[None]:
    """Within this block texts come from a directory, and not from the user: they import no module but these.

    A block within another, as of a model that a foreign config names, allows nothing that the outer one does not, and
    its paths are no places to look in.

    Args:
        modules: Names, or one; or paths of files and of packages' folders, which are then found there.
        of: As of `Trust`.
        words: As of `Trust`.

    Raises:
        InputError: what is no text, or a path at which there is nothing.
    """
    names, folders = [], []
    for module in [modules] if isinstance(modules, str) else modules:
        kinds.check(module, kinds.NAME, "trust")
        folder, base = os.path.split(module.rstrip("/"))
        if folder or base.endswith(".py"):
            if not os.path.exists(module):
                raise InputError(f"trust: there is no '{module}'; expected the file of a module, or its name")
            folders.append(os.path.abspath(folder))
        names.append(base.removesuffix(".py"))
    outer = _trust.get()
    tokens = (
        _trust.set((*outer, Trust(tuple(names), of, words))),
        _folders.set((*(() if outer else folders), *_folders.get())),
    )
    try:
        yield
    finally:
        _trust.reset(tokens[0])
        _folders.reset(tokens[1])


def function(name: str, what: str) -> Callable:
    """The function of a dotted name, as `my_methods.houlsby`; its calls run as `running` says.

    Args:
        name: The module's name, a dot and the function's.
        what: The kind of thing that it makes, for errors.

    Raises:
        InputError: no such module (with the nearest beside the config) or function (with the nearest in the module),
            one that fails to import or has changed since, another module of the name, a private name, no function, or
            a module that is not trusted.
    """
    module, _, own = name.rpartition(".")
    label = f"{what} '{name}'"
    if private := [part for part in name.split(".") if part.startswith("_")]:
        raise InputError(f"{label}: '{private[0]}' is private; expected names without a leading underscore")
    imported, source = _import(module, label)
    if not hasattr(imported, own):
        here = module.partition(".")[0]
        there = [key for key, value in vars(imported).items() if _home(value) == here and callable(value)]
        public = [key for key in there if not key.startswith("_")]
        raise InputError(f"{label}: '{source.file}' has no '{own}'; {nearest(own, public)}")
    found = getattr(imported, own)
    if not callable(found):
        kind = type(found).__name__
        raise InputError(f"{label} is no function: '{source.file}' has a {kind} there; expected one to call")

    @functools.wraps(found)
    def call(*args, **kwargs):
        with running(f"{label}: file", [source.file, *source.files.values()], source.folder):
            return found(*args, **kwargs)

    return call


def digest(module: str, what: str) -> str:
    """16 hexadecimal digits over the source of a module, and of those that it imports from the folder it lies in.

    Raises:
        InputError: as `function`, for a module that cannot be imported.
    """
    imported, _ = _import(module, what)
    return _digests[imported]


def files(module: str, what: str) -> list[str]:
    """The files of a module's source, its own first.

    Raises:
        InputError: there is no such module, or no file of it.
    """
    source = _find(module, what)
    return [source.file, *source.files.values()]


def folders() -> list[str]:
    """The folders in which the modules lie that texts have named, for a process that is to import them too."""
    return list(dict.fromkeys(folder for folder in _places.values() if folder not in SHARED))


@contextlib.contextmanager
def running(what: str, files: Collection[str], folder: str | None = None) -> Iterator[None]:
    """Run code of the user's: whatever it raises is an error of input that names the file and the line.

    What it prints goes to stderr, so that the output of a command stays what it is.

    Args:
        what: What the first file is, for errors.
        files: Files of the user's, the main one first.
        folder: A folder that the code may import from, beside those that Python looks in; None for none.

    Raises:
        InputError: what was raised, in one line; an `InputError` or a `MachineError` as it is.
    """
    with blaming(what, files), contextlib.redirect_stdout(sys.stderr), _on_path(folder):
        yield


def calling(what: str, *functions: Callable) -> contextlib.AbstractContextManager[None]:
    """`running` of the files in which functions were written, as far as they are the user's: ours are not to blame."""
    files = _of_users(functions)
    return running(what, files) if files else contextlib.nullcontext()


def blamed(what: str, function: Callable, then: Callable = lambda found, *args: found) -> Callable:
    """A function that is called as `calling` says, wherever that is; as it is where it is not the user's.

    Args:
        what: As of `calling`; of a function that was blamed as something else, the new one.
        function: The function.
        then: From what it returns, and what it is given, to what it should have returned.
    """
    function = getattr(function, "blamed", function)
    if not (files := _of_users([function])):
        return function

    @functools.wraps(function)
    def call(*args):
        with running(what, files):
            return then(function(*args), *args)

    call.blamed = function
    return call


def _of_users(functions: Iterable[Callable]) -> list[str]:
    """The files in which functions were written, as far as they are the user's."""
    codes = [getattr(inspect.unwrap(function), "__code__", None) for function in functions]
    return [code.co_filename for code in codes if code and os.path.dirname(__file__) not in code.co_filename]


@contextlib.contextmanager
def blaming(what: str, files: Collection[str]) -> Iterator[None]:
    """Make what code of the user's raises an error of input, as `running` does, and change nothing else.

    Raises:
        InputError: what was raised, in one line; an `InputError` or a `MachineError` as it is.
    """
    try:
        yield
    except (InputError, MachineError, KeyboardInterrupt):
        raise
    except BaseException as error:  # sys.exit() among them, which would end the command with nothing done
        file, line = _raised_at(error, files)
        where = f", line {line}" if line else ""
        raise InputError(f"{what} '{file}'{where}: {type_and_text(error)}") from None


def type_and_text(error: BaseException) -> str:
    """The type of an error and its text, cut where it is long, as one line."""
    text = error.msg if isinstance(error, SyntaxError) else said(error)
    line = cut(" ".join(text.split()), 320)
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _import(module: str, label: str) -> tuple[ModuleType, Source]:
    for trust in _trust.get():
        if not any(module == name or module.startswith(f"{name}.") for name in trust.modules):
            top = module.partition(".")[0]
            raise InputError(
                f"{label}: {trust.of} names the module '{top}', and what a directory says is not imported; where you "
                f"trust that module, say {trust.words.format(top)}"
            )
    source = _find(module, label)
    _refuse_others(source, label)
    digest = source.digest()
    importlib.invalidate_caches()  # of folders in which a file is new
    with running(f"{label}: file", [source.file, *source.files.values()], source.folder):
        imported = importlib.import_module(module)
    _refuse_others(source, label)
    _places[imported] = source.folder
    if _digests.setdefault(imported, digest) != digest:
        raise InputError(
            f"{label}: '{source.file}' or what it imports changed after it was imported; start Python anew"
        )
    return imported, source


def _find(module: str, label: str) -> Source:
    folders = list(dict.fromkeys((*_folders.get(), os.getcwd())))
    for folder in folders:
        if file := _file(folder, module):
            return Source(folder, file, _files(folder, module))
    top = module.partition(".")[0]
    spec = next((spec for finder in sys.meta_path if (spec := finder.find_spec(top, None))), None)
    if spec is None:  # even where `sys.modules` has one of the name, from the folder of another config
        there = [path.stem for folder in folders for path in Path(folder).glob("*.py")]
        way = _trust.get()[-1].words.format(f"DIR/{top}.py") if _trust.get() else "PYTHONPATH"
        raise InputError(
            f"{label}: there is no module '{module}' in {' or '.join(folders)}, nor is one installed; "
            f"{nearest(module, there)}; {way} may say where it lies"
        )
    for place in spec.submodule_search_locations or [spec.origin or ""]:
        if file := _file(folder := os.path.dirname(place), module):
            return Source(folder, file, _files(folder, module))
    raise InputError(f"{label}: '{top}' has no file of a module '{module}'; expected one that is written in Python")


def _files(folder: str, module: str) -> dict[str, str]:
    """By name, the files of a folder that an import of a module reads, now or when a function is called."""
    found, top = {}, module.partition(".")[0]
    todo = [module]
    while todo:
        for name in _around(todo.pop()):
            other = name.partition(".")[0] != top
            if name in found or (other and (name.partition(".")[0] == OURS or folder in SHARED)):
                continue
            if file := _file(folder, name):
                found[name] = file
                todo += _named(file, name)
    return found


def _file(folder: str, module: str) -> str | None:
    path = os.path.join(folder, *module.split("."))
    return next((file for file in (os.path.join(path, "__init__.py"), f"{path}.py") if os.path.isfile(file)), None)


def _around(module: str) -> list[str]:
    """A module's name and those of the packages around it."""
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _home(value: object) -> str:
    """The package in which a function or class was written; "" for what is neither."""
    return str(getattr(value, "__module__", "")).partition(".")[0]


def _named(file: str, module: str) -> Iterator[str]:
    """The names that the `import` statements of a file may mean."""
    try:
        tree = ast.parse(_read(file))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # which importing it says
        return
    package = module.split(".") if os.path.basename(file) == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*around, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" if base else alias.name for alias in node.names)


def _refuse_others(source: Source, label: str) -> None:
    """Refuse modules that were imported under the names of a user's, and files that would take a name of Python's."""
    for name, file in source.files.items():
        loaded = sys.modules.get(name)
        if name.partition(".")[0] in sys.stdlib_module_names and source.folder not in SHARED:
            raise InputError(f"{label}: '{file}' has the name of a module of Python's own; rename it")
        there = getattr(loaded, "__file__", None) or "another place"
        if loaded is not None and os.path.realpath(there) != os.path.realpath(file):
            raise InputError(
                f"{label}: it needs the module '{name}' of '{file}', and that of {there} is imported; rename one"
            )


@contextlib.contextmanager
def _on_path(folder: str | None) -> Iterator[None]:
    """Let Python look in a folder first, and write no bytecode there: it is told from source by its second alone."""
    if folder is None or folder in SHARED:
        yield
        return
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        with contextlib.suppress(ValueError):  # the code may have changed the list
            sys.path.remove(folder)


def _raised_at(error: BaseException, files: Collection[str]) -> tuple[str, int | None]:
    """The file of the user's, and the line in it, at which an error arose; the first file where it has none."""
    file, line, trace = next(iter(files)), None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in files:
            file, line = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename in files:
        file, line = error.filename, error.lineno
    return file, line


def _read(file: str) -> bytes:
    with open(file, "rb") as opened:
        return opened.read()
