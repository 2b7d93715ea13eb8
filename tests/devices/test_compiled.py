"""Compiled programs are kept in the user's cache, where nothing speaks against it."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jtransfer.devices import compiled

VARIABLES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)
PROGRAM = """
from jtransfer.devices import compiled
compiled.keep()
import jax, jax.numpy as jnp
compiled.count()
def long(x):
    for i in range(60):
        x = jnp.tanh(x @ x) + jnp.sort(x)[::-1] * i
    return x
jax.jit(long).lower(jax.ShapeDtypeStruct((8, 8), "float32")).compile()
print(compiled.said())
"""


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A process for which nothing is set, on a processor without faults."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiled, "_processor", lambda *keys: {"avx2"} if "flags" in keys else set())
    monkeypatch.setattr(compiled.glob, "glob", lambda pattern: [])
    return monkeypatch


def test_a_second_process_reads_what_the_first_has_compiled(tmp_path):
    if not compiled._read_back():
        pytest.skip("JAX cannot read back what it keeps on this processor")
    env = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    said = [
        subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert "XLA compiled 1 programs" in said[0] and "from the cache" not in said[0]
    assert "1 of them came from the cache" in said[1]


def test_each_kind_of_machine_has_a_directory_of_its_own_with_a_limit(fresh, tmp_path):
    compiled.keep()
    first = os.environ.pop(VARIABLES[0])
    assert os.path.isdir(first) and first.startswith(str(tmp_path / "cache" / "jtransfer" / "compiled"))
    assert int(os.environ[VARIABLES[1]]) == compiled.LIMIT
    fresh.setattr(compiled, "_processor", lambda *keys: {"avx2", "avx512f"} if "flags" in keys else set())
    compiled.keep()
    assert os.environ[VARIABLES[0]] != first


def test_what_the_user_has_set_is_left_alone(fresh):
    fresh.setenv(VARIABLES[0], "mine")
    compiled.keep()
    assert os.environ[VARIABLES[0]] == "mine" and VARIABLES[1] not in os.environ


@pytest.mark.parametrize("why", ["a processor whose programs are not read back", "no place", "macOS"])
def test_nothing_is_kept_where_it_would_do_harm(fresh, tmp_path, why):
    if why == "no place":
        (tmp_path / "cache").write_text("a file")
    elif why == "macOS":
        fresh.setattr(sys, "platform", "darwin")
    else:
        fresh.setattr(compiled, "_processor", lambda *keys: {"gds", "spectre_v2"})
    compiled.keep()
    assert VARIABLES[0] not in os.environ
    if why != "no place":
        fresh.setattr(compiled.glob, "glob", lambda pattern: ["/dev/nvidia0"] if "nvidia" in pattern else [])
        compiled.keep()
        assert VARIABLES[0] in os.environ  # an accelerator's programs are read back


def test_compiled_programs_are_counted():
    compiled.count()
    before = int(compiled.said().split()[2])
    jax.jit(lambda x: jnp.cos(x) * 1.2345).lower(jax.ShapeDtypeStruct((3,), "float32")).compile()
    assert int(compiled.said().split()[2]) == before + 1
