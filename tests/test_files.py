"""Whole directories are written at once: whenever the process dies, the old one is there or the new one."""

import json
import os
import subprocess
import sys

import pytest

from jtransfer.errors import Damaged, InputError
from jtransfer.storage import directories

# Writes the directory again in a process that kills itself at the n-th thing it does to the file system, for every n.
CRASHES = """
import json, os, sys
from pathlib import Path
from jtransfer.storage import directories

exchange, target = sys.argv[1] == "exchange", Path(sys.argv[2]) / "out"
if not exchange:
    directories._exchange = lambda one, other: False
TOUCHES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


def write(content, die_at=None):
    done = 0

    def hook(event, arguments):
        nonlocal done
        if die_at is not None and event in TOUCHES:
            done += 1
            if done == die_at:
                os._exit(9)

    sys.addaudithook(hook)
    with directories.replacing(target, {"content": content}) as draft:
        (draft / "deep").mkdir()
        for name in ("one", "deep/two"):
            (draft / name).write_text(content)


def found():
    record = target / directories.RECORD
    if not record.exists():
        return None
    content = json.loads(record.read_text())["content"]
    assert [(target / name).read_text() for name in ("one", "deep/two")] == [content, content]
    assert sorted(os.listdir(target)) == ["deep", directories.RECORD, "one"]
    return content


def crash(content, die_at):
    child = os.fork()
    if not child:
        write(content, die_at)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


seen = []
for before in (None, "old"):
    if before:
        write(before)
    for die_at in range(1, 200):
        code = crash("new", die_at)
        seen.append((before, code, found()))
        if code == 0:
            break
        if found() == "new":
            write("old")
    assert code == 0, "never got to the end"
    assert [path for path in os.listdir(target.parent) if path.startswith(".")] == []
print(json.dumps(seen))
"""


def crashes(how, directory):
    out = subprocess.run([sys.executable, "-c", CRASHES, how, directory], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets two directories change places")
def test_a_crash_at_any_step_leaves_the_old_directory_or_the_new_one(tmp_path):
    seen = crashes("exchange", tmp_path)
    assert {(before, found) for before, code, found in seen if code} == {
        (None, None),
        (None, "new"),
        ("old", "old"),
        ("old", "new"),
    }
    assert len(seen) > 20


def test_where_places_cannot_be_exchanged_the_next_write_takes_the_old_directory_back(tmp_path):
    seen = crashes("rename", tmp_path)
    absent = [found for before, _, found in seen if before and found is None]
    assert len(absent) == 1  # the instant between two renames


def write(path, content="x"):
    with directories.replacing(path, {}) as draft:
        (draft / "file").write_text(content)


def test_an_error_while_writing_leaves_no_trace(tmp_path):
    write(tmp_path / "out", "old")
    for name in ("out", "other"):
        with pytest.raises(ZeroDivisionError), directories.replacing(tmp_path / name, {}) as draft:
            (draft / "file").write_text("new")
            raise ZeroDivisionError
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_what_was_not_written_so_is_never_replaced(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="full is not empty, and holds no earlier export"):
        write(tmp_path / "full")
    with pytest.raises(InputError, match=r"thesis.tex is a file; expected a directory"):
        write(tmp_path / "full" / "thesis.tex")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "full" / "thesis.tex" / "out")
    with pytest.raises(InputError, match="gs://bucket/out: an object store cannot replace"):
        write("gs://bucket/out")
    write(tmp_path / "out")
    (tmp_path / "out" / "notes").mkdir()
    (tmp_path / "out" / "notes" / "README.md").write_text("x")
    with pytest.raises(InputError, match=r"more than an earlier export \(notes/README.md\), which would be lost"):
        write(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and sorted(os.listdir(tmp_path / "empty")) == ["file", directories.RECORD]
    assert sorted(os.listdir(tmp_path)) == ["empty", "full", "link", "out"]


@pytest.mark.parametrize("name", ["processor_config.json", "1_Pooling/config.json", "model-2.safetensors"])
def test_what_a_loader_would_read_and_was_not_written_with_the_rest_is_refused_by_name(name, tmp_path):
    directories.write_together(tmp_path, {"config.json": b"{}", "2_Dense/config.json": b"{}"})
    for harmless in ("README.md", ".cache/x.json", "config.json.orig"):
        (tmp_path / harmless).parent.mkdir(exist_ok=True)
        (tmp_path / harmless).write_text("x")
    directories.verify(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(Damaged, match=f"{name} was not written with the files beside it; move it away"):
        directories.verify(tmp_path)
