"""What an installed package holds beside its modules."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
from importlib.resources import files
root = files("jtransfer")
print(root, *(root.joinpath(*path.split("/")).is_file() for path in ("py.typed", "assets/glyphs-vit/config.json")))
"""


def test_a_built_package_says_that_it_is_typed_and_holds_the_embedded_backbones(tmp_path):
    pytest.importorskip("setuptools", reason="builds the package")
    build = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    said = subprocess.check_output([sys.executable, "-c", CODE], cwd=tmp_path, env=env, text=True)
    assert said.split() == [str(tmp_path / "jtransfer"), "True", "True"]
