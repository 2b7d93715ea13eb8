"""`experiments/speed/device.py`: every section is accounted for, and what fails, hangs or is missing is said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


@pytest.fixture
def device(monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))
    import device

    return device


def run(out, *arguments):
    command = [sys.executable, str(SPEED / "device.py"), "--tiny", f"--out={out}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=SPEED.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((out / "device.json").read_text())["sections"], done.stdout


def recorded(device, monkeypatch, cases):
    """A section of such cases, recorded in this process."""
    monkeypatch.setitem(device.SECTIONS, "own", device.Section(lambda tiny: iter(cases.items()), 1, checks=True))

    def here(command, seconds):
        file = Path(command[2].removeprefix("--rows="))
        with file.open("a") as lines:
            device.record("own", True, lambda line: lines.write(json.dumps(line) + "\n"))
        return 0

    return device.section("own", True, 1, here)


def raises(error):
    raise error


def test_a_section_leaves_its_figures_and_its_check(tmp_path):
    sections, said = run(tmp_path, "--only=knn")
    (case,) = sections["knn"]["rows"]
    assert sections["knn"]["status"] == "done"
    assert case["ok"] and case["figures"]["error"] < 1e-5
    assert (tmp_path / "device.md").read_text() in said


def test_a_section_for_which_no_time_is_left_is_skipped_and_says_what_it_needs(device, tmp_path):
    sections, _ = run(tmp_path, "--minutes=0")
    assert sections.keys() == device.SECTIONS.keys()
    assert {x["status"] for x in sections.values()} == {"skipped"}
    assert all("it needs" in x["why"] for x in sections.values())


def test_a_case_that_fails_is_recorded_and_the_others_go_on(device, monkeypatch):
    good = device.device_checks.row({"s": 1}, True)
    found = recorded(device, monkeypatch, {"bad": lambda: raises(ValueError("no\nsuch")), "good": lambda: good})
    assert (found["status"], found["why"]) == ("failed", "bad: ValueError: no")
    assert found["rows"][1] == {"case": "good"} | good
    assert device.wrong("own", found["status"])


def test_a_failed_check_is_wrong_and_a_missing_package_is_skipped(device, monkeypatch):
    found = recorded(device, monkeypatch, {"far": lambda: device.device_checks.row({"error": 1}, False)})
    assert (found["status"], found["why"]) == ("wrong", "far")
    assert device.wrong("own", found["status"])
    missing = ModuleNotFoundError("none", name="sklearn")
    found = recorded(device, monkeypatch, {"peer": lambda: raises(missing)})
    assert (found["status"], found["why"]) == ("skipped", "peer: sklearn is not installed")
    assert not device.wrong("own", found["status"])


def test_a_module_of_ours_that_is_missing_is_no_missing_package(device):
    assert "failed" in device.attempt(lambda: raises(ModuleNotFoundError("none", name="jtransfer.gone")))


@pytest.mark.parametrize(("status", "ended"), [(None, "stopped"), (-6, "failed")])
def test_a_process_that_hangs_or_crashes_keeps_the_cases_before(device, status, ended):
    def half(command, seconds):
        Path(command[2].removeprefix("--rows=")).write_text('{"case": "first"}\n{"case": "sec')
        return status

    found = device.section("attention", True, 1, half)
    assert (found["status"], found["rows"]) == (ended, [{"case": "first"}])
    assert device.wrong("attention", ended) and not device.wrong("curve", ended)


def test_a_process_is_ended_when_its_time_is_up(device):
    assert device.apart([sys.executable, "-c", "import time; time.sleep(60)"], 0.2) is None
    assert device.apart([sys.executable, "-c", "raise SystemExit(3)"], 60) == 3


def test_attention_is_right_and_wrong_without_its_mask(device, monkeypatch):
    checks = device.device_checks
    assert checks.attended(6, 6, 8, "causal padding", "float32")["ok"]
    attend = checks.layers.attend
    monkeypatch.setattr(checks.layers, "attend", lambda query, key, value, mask: attend(query, key, value))
    assert not checks.attended(6, 6, 8, "causal padding", "float32")["ok"]


def test_the_plain_peer_has_as_many_parameters_that_learn(device):
    pytest.importorskip("torch")
    from plain_vit import plain

    steps = device.steps
    ours, _ = steps.ours("lora", steps.TINY, "float32", 32, steps.random_batch(2, 32))
    learning = [x for x in plain("lora", steps.TINY, 32).parameters() if x.requires_grad]
    assert sum(x.numel() for x in learning) == ours.learns
