"""Words of others stay words: in Markdown, in Python that we write, on a terminal, and in a command."""

import ast
import shlex

import pytest

from jtransfer import texts
from jtransfer.advice import page
from jtransfer.config import advise_defaults
from jtransfer.evaluate import report

HOSTILE = [
    '"""\nimport os; os.system("touch taken")\n"""',
    "a\\",
    'quote" and \\" and \\\\"""',
    "new\nline",
    "\x1b[2J\x07",
    "$(touch taken) `touch taken`; rm -rf x",
    "\N{RIGHT-TO-LEFT OVERRIDE}",
    "a|b`c``d",
]


def advice(directory):
    command = shlex.join(["jtransfer", "curve", f"--config={directory}/curve.py", f"--workdir={directory}/curve"])
    config = {key: list(x) if isinstance(x, tuple) else x for key, x in advise_defaults().items()}
    chosen = {"method": "probe", "alternative": "finetune", "baseline": "scratch"}
    return chosen | {"fewest": 20, "next": command, "config": config}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_directory_s_name_becomes_no_code_in_the_config_that_advise_writes(name):
    tree = ast.parse(page.next_config(advice(name)))
    kinds = [type(node) for node in tree.body]
    assert kinds == [ast.Expr, ast.ImportFrom, ast.FunctionDef], "a docstring, an import and get_config"
    assert advice(name)["next"] in ast.get_docstring(tree, clean=False), "and it says the command as it is"


@pytest.mark.parametrize("name", HOSTILE)
def test_the_command_that_advise_tells_to_run_is_of_two_flags_whatever_the_directory(name):
    assert shlex.split(advice(name)["next"])[2:] == [f"--config={name}/curve.py", f"--workdir={name}/curve"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_starts_no_line_and_no_cell_of_a_table_and_moves_no_cursor(name):
    row = {"protocol": f"attributes(file={name!r})", "layer": "features", "chosen": {}, "how": f"of {name}"}
    row |= {"metrics": {f"AUROC of {name}": 0.5, f"accuracy of {name}": None}}
    table = report.table_markdown([row], [f"Data: {name}."])
    lines = table.splitlines()
    assert len(lines) == 3 + 1 + 1 + 1 + 2 and all(line.isprintable() for line in lines)
    cells = lines[2].replace(r"\|", "").split("|")
    assert len(cells) == 7, "five cells between six bars"


def test_printable_letters_and_spaces_of_any_script_stay_as_they_are():
    assert texts.plain("naïve 東京\N{NO-BREAK SPACE}±0.5") == "naïve 東京\N{NO-BREAK SPACE}±0.5"
    assert texts.code("lora(rank=4)") == "`lora(rank=4)`" and texts.code("a`b") == "`` a`b ``"
