"""Launches that flags describe, and how many devices each process of one gets."""

from types import SimpleNamespace

import jax
import pytest

from jtransfer import cli
from jtransfer.devices import hosts
from jtransfer.devices.launch import Launch, describe, launch
from jtransfer.errors import InputError


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)


def test_flags_describe_a_launch_and_come_before_what_the_launcher_says(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    describe(None, None, None)
    assert launch().number == 8
    describe("gpu7:1234", 4, 3)
    assert launch() == Launch(3, 4, "gpu7", 1234, "JAX_COORDINATOR_ADDRESS")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("gpu7:1234", None, 1), "--processes is missing; --coordinator, --processes, --process describe a launch"),
        (("gpu7", 2, 1), "--coordinator 'gpu7': expected host:port of process 0"),
        (("gpu7:1", 2, 2), "--process 2 of --processes 2: expected a number from 0 to below their number"),
        (("gpu7:1", 0, 0), "--process 0 of --processes 0"),
    ],
)
def test_flags_that_describe_no_launch_are_refused(flags, said):
    with pytest.raises(InputError, match=said):
        describe(*flags)


@pytest.mark.parametrize("flag", ["--processes=two", "--patience=long", "--patience=-1", "--patience=nan"])
def test_a_flag_that_is_no_number_is_refused_by_name(flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "--config=none.py", "--workdir=none", flag])
    assert f"argument {flag.partition('=')[0]}: invalid" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "env", "given"),
    [(["a", "b"], "", []), (["a", "a"], "", None), (["a", "b"], "0,1", None)],
)
def test_the_only_process_of_a_host_has_all_its_devices(names, env, given, monkeypatch):
    """JAX would give it one GPU alone under Slurm; of several processes on a host each has its own."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **kwargs: asked.update(kwargs))
    if env:
        monkeypatch.setenv("JAX_LOCAL_DEVICE_IDS", env)
    hosts._join(Launch(1, 2, "a", 1), SimpleNamespace(hosts=names, address="127.0.0.1:1"))
    assert asked["local_device_ids"] == given
