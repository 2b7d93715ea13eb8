"""Names in expressions: of our tables, or dotted ones of the user's modules, which are found, refused and known."""

import os
import re
import sys
from pathlib import Path

import pytest

from jtransfer import expressions, imports, methods, objectives
from jtransfer.errors import InputError
from jtransfer.evaluate import protocols

FILES = {
    "own_methods.py": """
from __future__ import annotations
from typing import Literal
import own_layers
from jtransfer.methods import bitfit, lora

WIDTH, ready = 3, bitfit()

def adapter(width: int = 2, kind: Literal["a", "b"] = "a"):
    print("said")
    return lora(rank=width)

def free(**options):
    import own_late
    return lora(**options)

def nothing(): pass

def fails():
    return 1 / 0

def _hidden():
    return bitfit()

def protocol(task, k=1):
    return k

def sized(sides: tuple[int, str] = (1, "a")):
    return lora(rank=sides[0])
""",
    "own_layers.py": "import own_deep",
    "own_deep.py": "x = 1",
    "own_late.py": "x = 1",
    "own_unused.py": "x = 1",
    "own_broken.py": "import own_layers\nx = nope",
    "own_around.py": "import own_broken",
    "own_syntax.py": "def f(:",
    "own_exit.py": "import sys\nsys.exit(3)",
    "own_lost.py": "import nowhere_at_all",
    "json.py": "def loads(): pass",
    "own_shadow.py": "def f():\n    import tabnanny",
    "tabnanny.py": "",
    "own_lab/__init__.py": "",
    "own_lab/parts.py": "from . import near\nfrom own_deep import x\nfrom jtransfer.methods import bitfit",
    "own_lab/near.py": "",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of modules, as that of a config; no test sees what another has imported of its own."""
    for name, text in FILES.items():
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    yield Path("configs")
    forget()


def forget():
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def rank(method):
    return method.parts[0].of("any")[0]


def known(text):
    return expressions.modules(text, "method")


def test_a_dotted_name_is_a_function_of_a_module_beside_the_config(folder, capsys):
    path, tables = list(sys.path), (dict(methods.METHODS), dict(protocols.PROTOCOLS))
    with imports.beside(folder):
        method = methods.parse("own_methods.adapter(width=5) + bitfit")
        assert rank(methods.parse("own_methods.free(rank=7)")) == 7
        assert rank(methods.parse("own_methods.sized(sides=(2, 'b'))")) == 2
    assert method.name == "own_methods.adapter(width=5) + bitfit" and rank(method) == 5
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "said\n")  # the output of a command stays what it is
    assert sys.path == path and not [*folder.rglob("__pycache__")]
    assert tables == (methods.METHODS, protocols.PROTOCOLS)
    assert rank(methods.parse("jtransfer.methods.lora(rank=3)")) == 3  # of what is installed too


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "own_method.adapter": "there is no module 'own_method' in .*configs or .*; did you mean 'own_methods'?",
        "own_methods.adaptor": "own_methods.py' has no 'adaptor'; did you mean 'adapter'?",
        "own_methods.adapter.width": "there is no module 'own_methods.adapter'",
        "own_methods.WIDTH": "'own_methods.WIDTH' is no function: .* has a int there",
        "own_methods.ready": "'own_methods.ready' is no function: .* has a Method there",
        "own_methods.adapter(wdth=3)": "'own_methods.adapter' has no option 'wdth'; did you mean 'width'?",
        "own_methods.adapter(width='a')": "width: expected a whole number, found 'a'",
        "own_methods.adapter(kind='c')": "kind: expected 'a' or 'b', found 'c'",
        "own_methods.sized(sides=(2, 3))": "sides: expected a list of 2 items: a whole number, a text without",
        "own_methods.sized(sides=(2,))": "sides: expected a list of 2 items: a whole number, a text without",
        "own_methods.adapter(1, 'a', 3)": "does not fit own_methods.adapter(width: int = 2",
        "own_methods.nothing": "'own_methods.nothing' returned None; expected a Method",
        "own_methods.fails": "own_methods.py', line 20: ZeroDivisionError: division by zero",
        "own_methods._hidden": "'_hidden' is private",
        "_own.adapter": "'_own' is private",
        "own_broken.f": "own_broken.py', line 2: NameError: name 'nope' is not defined",
        "own_around.f": "own_broken.py', line 2: NameError: name 'nope' is not defined",
        "own_syntax.f": "own_syntax.py', line 1: SyntaxError: invalid syntax",
        "own_exit.f": "own_exit.py', line 2: SystemExit: 3",
        "own_lost.f": "own_lost.py', line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        "json.loads": "configs/json.py' has the name of a module of Python's own; rename it",
        "own_shadow.f": "configs/tabnanny.py' has the name of a module of Python's own; rename it",
        "sys.exit": "'sys' has no file of a module 'sys'",
        ".adapter": "is not of the form name, name(option=value) or module.name(option=value)",
        "own_methods.": "is not of the form",
        "own_methods..adapter": "is not of the form",
        "own_methods.adapter().x": "is not of the form",
        "own_methods.ａdapter": "expected the letters of 'adapter'",
    }.items(),
)
def test_what_a_dotted_name_cannot_be_is_said_in_one_line(folder, text, message):
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with imports.beside(folder), pytest.raises(InputError, match=pattern) as refused:
        methods.parse(text)
    assert "\n" not in str(refused.value) and str(refused.value).startswith("method ")


def test_what_is_returned_must_be_what_the_table_s_functions_return(folder):
    with imports.beside(folder), pytest.raises(InputError, match="'own_methods.protocol' returned 4; expected a func"):
        protocols.parse("own_methods.protocol(k=4)")(None)


@pytest.mark.parametrize(
    ("text", "said"),
    {
        "clip(parts=3)": "objective 'clip': parts comes from config.accumulate; leave it out",
        "clip(3)": "objective 'clip': parts comes from config.accumulate; leave it out",
        "clip(temperature_limit=-1.0)": "temperature_limit comes from config.temperature_limit; leave it out",
        "siglip(mesh=8)": "objective 'siglip': mesh comes from config.mesh; leave it out",
        "masked_lm(tokenizer='mine')": "objective 'masked_lm': tokenizer comes from the backbone; leave it out",
    }.items(),
)
def test_an_option_that_the_run_gives_is_none_of_the_text(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        objectives.parse(text)
    assert objectives.parse("clip", offered={"parts": 2}).reads == "pairs"


def test_the_config_s_folder_comes_before_the_working_directory_and_that_before_python_s(folder, monkeypatch):
    for place, expected in (("configs", 1), (".", 2), ("lib", 3)):
        Path(place).mkdir(exist_ok=True)
        text = f"from jtransfer.methods import lora\ndef f(): return lora(rank={expected})"
        Path(place, "own_order.py").write_text(text)
    monkeypatch.syspath_prepend(os.path.abspath("lib"))
    for place, expected in (("configs", 1), (".", 2), ("lib", 3)):
        with imports.beside(folder):
            assert rank(methods.parse("own_order.f")) == expected
        Path(place, "own_order.py").unlink()
        forget()


def test_a_module_of_the_name_that_was_imported_from_elsewhere_is_never_used(folder):
    Path("other").mkdir()
    for name in ("own_methods.py", "own_layers.py"):
        Path("other", name).write_text("x = 1")
    with imports.beside("other"), pytest.raises(InputError, match="has no 'adapter'"):
        methods.parse("own_methods.adapter")
    with pytest.raises(InputError, match="there is no module 'own_methods'"):  # whatever Python still has of it
        methods.parse("own_methods.adapter")
    with imports.beside(folder):
        with pytest.raises(InputError, match="the module 'own_methods' of .*configs.* that of .*other.* is imported"):
            methods.parse("own_methods.adapter")
        del sys.modules["own_methods"]
        sys.modules["own_layers"] = type(sys)("own_layers")
        sys.modules["own_layers"].__file__ = "other/own_layers.py"
        with pytest.raises(InputError, match="needs the module 'own_layers' of .*configs.* that of other/own_layers"):
            methods.parse("own_methods.adapter")


def test_a_module_is_known_by_its_source_and_that_of_what_it_imports_from_its_folder(folder):
    def digest(text="own_methods.adapter"):
        forget()
        with imports.beside(folder):
            (found,) = known(f"probe + {text}").values()
        return found

    first, of_package = digest(), digest("own_lab.parts.bitfit")
    for name in ("own_methods.py", "own_layers.py", "own_deep.py", "own_late.py"):
        before = digest()
        with open(folder / name, "a") as file:
            file.write("\n#")
        assert digest() != before, name
    changed = digest()
    (folder / "own_unused.py").write_text("")
    assert digest() == changed != first
    assert digest("own_lab.parts.bitfit") != of_package  # which reads own_deep
    of_package = digest("own_lab.parts.bitfit")
    (folder / "own_lab/near.py").write_text("x = 1")
    assert digest("own_lab.parts.bitfit") != of_package
    folder.rename("elsewhere")
    folder = Path("elsewhere")
    assert digest() == changed
    assert known("probe + lora(rank=2)") == {}


def test_a_source_that_changes_after_it_was_imported_is_refused(folder):
    with imports.beside(folder):
        methods.parse("own_methods.adapter")
        (folder / "own_deep.py").write_text("x = 2")
        with pytest.raises(InputError, match="own_methods.py' or what it imports changed .*; start Python anew"):
            methods.parse("own_methods.adapter")


def test_what_a_directory_says_is_imported_only_where_the_user_trusts_the_module(folder):
    Path("own_trap.py").write_text("open('sprung', 'w')")

    def parse(text, *trust):
        with imports.trusting(trust, "workdir theirs", "--trust={0}"):
            return methods.parse(text)

    for trust in ((), ("own_tra",), ("configs/own_methods.py",)):
        with pytest.raises(InputError, match="workdir theirs names the module 'own_trap', .* say --trust=own_trap$"):
            parse("probe + own_trap.f", *trust)
        with pytest.raises(InputError, match="say --trust=jtransfer$"):
            parse("jtransfer.methods.lora", *trust)
    assert not Path("sprung").exists() and "own_trap" not in sys.modules
    assert rank(parse("lora(rank=2)")) == 2
    assert rank(parse("own_methods.adapter", "configs/own_methods.py")) == 2
    assert parse("own_lab.parts.bitfit", "configs/own_lab").name == "own_lab.parts.bitfit"
    with pytest.raises(InputError, match="there is no module 'own_lab.parts' in .*; --trust=DIR/own_lab.py may say"):
        parse("own_lab.parts.bitfit", "own_lab")
    with pytest.raises(InputError, match=r"trust: there is no 'nowhere/own_methods.py'"):
        parse("own_methods.adapter", "nowhere/own_methods.py")
