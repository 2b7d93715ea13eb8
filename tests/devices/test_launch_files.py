"""The files under launch/: their commands are ours, and what they begin again is what may end otherwise."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from jtransfer import cli
from jtransfer.errors import Gone, MachineError

yaml = pytest.importorskip("yaml")

LAUNCH = Path(__file__).parents[2] / "launch"
DOCS = LAUNCH.parent / "docs" / "launching.md"
AGAIN, FINAL = (Gone.CODE, 137, 143), (1, 2, MachineError.CODE, 130)

FAKES = {
    "srun": 'printf "%s\\n" "$@" > srun.said; exit "$(head -n 1 codes)"',
    "squeue": "cat state",
    "scontrol": 'echo "$@" > scontrol.said',
    "sleep": "",
    "jtransfer": 'printf "%s\\n" "$@" > jtransfer.said; code=$(head -n 1 codes); sed -i 1d codes; exit "$code"',
    "gcloud": """
case "$*" in
  *" ssh "*) for word; do [[ $word == --command=* ]] && bash -c "${word#--command=}"; done; exit 1 ;;
  *" describe "*) echo asked >> describe.said; echo READY ;;
esac
""",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(file, codes, *arguments)`: the exit code of a script where each command of ours ends with the next code."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    for name, body in FAKES.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}

    def script(file, codes, *arguments, state="RUNNING", **more):
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        (tmp_path / "state").write_text(state)
        return subprocess.run(["bash", LAUNCH / file, *arguments], env=env | more, timeout=60).returncode

    return script


def said(name):
    path = Path(f"{name}.said")
    return path.read_text().splitlines() if path.exists() else []


def parsed(words):
    """What our command line makes of a command; a mistake would exit."""
    arguments, overrides = cli._parse(words)
    return arguments.command, arguments.config, arguments.workdir, overrides


@pytest.mark.parametrize("code", [0, *AGAIN, *FINAL])
def test_slurm_puts_a_job_back_into_the_queue_where_another_try_may_end_otherwise(code, run):
    assert run("slurm.sbatch", [code], "a b.py", "runs/mine", "--config.steps=3") == code
    words = said("srun")
    start = words.index("jtransfer")
    assert parsed(words[start + 1 :]) == ("train", "a b.py", "runs/mine", ["--config.steps=3"])
    assert said("scontrol") == (["requeue 7"] if code in AGAIN else [])


def test_slurm_puts_back_no_job_that_was_cancelled_or_was_put_back_a_hundred_times(run):
    assert run("slurm.sbatch", [143], "a.py", "runs/mine", state="COMPLETING") == 143
    assert run("slurm.sbatch", [143], "a.py", "runs/mine", SLURM_RESTART_COUNT="100") == 143
    assert said("scontrol") == []


@pytest.mark.parametrize(
    ("codes", "code", "begun"),
    [([0], 0, 1), ([75, 143, 0], 0, 3), *(([137, code], code, 2) for code in FINAL)],
)
def test_a_training_on_a_tpu_pod_is_begun_again_until_it_is_done_or_cannot_be(codes, code, begun, run):
    assert run("tpu_pod.sh", codes, "pod", "us-central2-b", "a b.py", "gs://bucket/run", "--config.steps=3") == code
    assert parsed(said("jtransfer")) == ("train", "a b.py", "gs://bucket/run", ["--config.steps=3"])
    assert len(said("describe")) == begun - 1 and Path("codes").read_text() == ""


def test_gke_runs_our_command_on_every_host_and_gives_up_for_codes_that_would_come_again():
    (job,) = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert parsed(container["command"][1:])[:2] == ("train", "configs/pretrain_glyphs.py")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert tuple(rule["onExitCodes"]["values"]) == FINAL and rule["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never" and spec["backoffLimit"] == 0  # as podFailurePolicy demands
    x, y = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == x * y // chips


def test_every_command_in_the_page_on_launching_is_one_of_ours():
    text = DOCS.read_text().replace("\\\n", " ")
    commands = re.findall(r"(?m)^(?:\w+=\S+ )*(?:mpirun .*?)?(jtransfer .*?)'?$", text)
    assert len(commands) >= 3
    for command in commands:
        assert parsed(
            shlex.split(command.replace("$OMPI_COMM_WORLD_SIZE", "2").replace("$OMPI_COMM_WORLD_RANK", "1"))[1:]
        )
    files = set(re.findall(r"launch/([\w.]+)", text))
    assert files == {path.name for path in LAUNCH.iterdir()}
