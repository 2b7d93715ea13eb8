"""Inputs that are not what they should be: one line that names the thing, exit code 2, nothing compiled or written.

The generated half takes wrong values for every key of every command; the other half was written by hand. A part runs by
default, all of it with `pytest -m slow`.
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import jtransfer
from jtransfer import cli, config, kinds, methods
from jtransfer.advice import run as advise
from jtransfer.config.checks import table
from jtransfer.curves import run as curves
from jtransfer.devices.sharding import make_mesh
from jtransfer.errors import InputError
from jtransfer.evaluate import run as evaluate
from jtransfer.train import Optimiser, runs

PREPARE = {"train": runs.prepare, "curve": curves.prepare, "evaluate": evaluate.prepare, "advise": advise.prepare}
BASE = {
    "train": {"data": "digits", "model": {"architecture": "vit", "image": (8, 8), "channels": 1, "patch": 4}},
    "curve": {"methods": ("probe",)},
    "evaluate": {},
    "advise": {},
}
jax.random.key(0)  # which JAX compiles the first time, and which says nothing of a model
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: compiled.append(name) if "backend_compile" in name else None
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory to run in; a refused input leaves it as it is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, arguments, *named):
    """The one line of a command that is refused before anything is compiled or written."""
    before, there = len(compiled), sorted(Path().rglob("*"))
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stopped:  # the parser's
        code = stopped.code
    said = capsys.readouterr()
    assert code == 2, (code, said)
    assert said.err.count("\n") == 1 and said.err.startswith("jtransfer: error: ") and not said.out, said
    assert len(said.err) < 1500
    assert len(compiled) == before and sorted(Path().rglob("*")) == there
    for name in named:
        assert name in said.err, (name, said.err)
    return said.err


def file_of(values, name="own.py"):
    """A config file with some values, as Python writes them."""
    Path(name).write_text(
        "from math import inf, nan\nfrom ml_collections import ConfigDict\n\n\n"
        f"def get_config():\n    return ConfigDict({values!r})\n"
    )
    return f"--config={name}"


def nested(key, value):
    *sections, last = key.split(".")
    values = {last: value}
    for section in reversed(sections):
        values = {section: values}
    return values


def over(one, other):
    both = {
        key: over(one[key], x) if isinstance(x, dict) and isinstance(one.get(key), dict) else x
        for key, x in other.items()
    }
    return one | both


WRONG = [
    "16",
    "",
    -1,
    0,
    1.5,
    10**40,
    float("nan"),
    float("inf"),
    True,
    None,
    b"16",
    (),
    ("a", 1),
    {"a": 1},
    "a\nb",
    1j,
]


def leaves(command):
    def walk(kinds_of, prefix):
        for key, kind in kinds_of.items():
            yield from walk(kind, f"{prefix}{key}.") if isinstance(kind, dict) else [(prefix + key, kind)]

    yield from walk(table(command, BASE[command]), "")


def generated():
    """For every key of every command four wrong values, of kinds that are as far apart as the list above has them."""
    for command in BASE:
        for i, (key, kind) in enumerate(leaves(command)):
            wrong, i = [value for value in WRONG if not kind.takes(value)], i % 5
            for value in (wrong[i:] + wrong[:i])[:: max(1, -(-len(wrong) // 4))]:
                yield command, key, value


GENERATED = list(generated())


def some(cases, every):
    """All of them, those beyond each so-and-so-many-th marked slow."""
    return [case if i % every == 0 else pytest.param(*case, marks=pytest.mark.slow) for i, case in enumerate(cases)]


@pytest.mark.parametrize(("command", "key", "value"), some(GENERATED, 12))
def test_a_wrong_value_in_a_file_is_named_with_its_key_and_the_file(place, capsys, command, key, value):
    flag = file_of(over(BASE[command], nested(key, value)))
    refused(
        capsys, [command, flag, "--workdir=run"], f"config.{key}" if key != "model.architecture" else "config.model"
    )


@pytest.mark.parametrize(("command", "key", "value"), some(GENERATED[1:], 24))
def test_python_is_told_what_the_command_line_is_told(command, key, value):
    before = len(compiled)
    with pytest.raises(InputError, match=f"config.{key}" if key != "model.architecture" else "config.model"):
        PREPARE[command](ConfigDict(over(over(config.DEFAULTS[command](), BASE[command]), nested(key, value))))
    assert len(compiled) == before


def test_every_default_is_of_its_kind_and_no_key_is_without_one():
    for command, defaults in config.DEFAULTS.items():
        config.check(command, ConfigDict(defaults()))
        assert table(command, {}).keys() == defaults().keys()


FLAGS = [
    ("train", "batch=many", "config.batch: expected a whole number from 1 to 1,048,576, found 'many' (--config."),
    ("train", "batch=1.5", "config.batch"),
    ("train", "batch=1e3", "config.batch"),
    ("train", "batch=True", "config.batch"),
    ("train", "batch=9" * 30, "config.batch"),
    ("train", "seed=-1", "config.seed"),
    ("train", "seed=4294967296", "config.seed"),
    ("train", "steps=0", "config.steps"),
    ("train", "accumulate=3", "config.batch 256 must be a multiple of"),
    ("train", "ema=nan", "config.ema: expected a number of at least 0 and below 1, found 'nan'"),
    ("train", "ema=2", "config.ema"),
    ("train", "ema=1", "config.ema"),
    ("train", "ema=-0.1", "config.ema"),
    ("train", "smoothing=2", "config.smoothing"),
    ("train", "mixup=-1", "config.mixup"),
    ("train", "mixup=1e999", "config.mixup"),
    ("train", "optimiser.rate=-1e-3", "config.optimiser.rate"),
    ("train", "optimiser.rate=0", "config.optimiser.rate"),
    ("train", "optimiser.rate=inf", "config.optimiser.rate"),
    ("train", "optimiser.b2=1", "config.optimiser.b2"),
    ("train", "optimiser.no_decay=(bias", "config.optimiser.no_decay: expected a regular expression, found '(bias'"),
    ("train", "optimiser.no_decay=*", "config.optimiser.no_decay"),
    ("train", "optimiser.name=adam", "did you mean 'adamw'?"),
    ("train", "optimiser.schedule=cosin", "did you mean 'cosine'?"),
    ("train", "optimiser.momentum=0.5", "config.optimiser.momentum is of 'sgd'"),
    ("train", "optimiser.rat=1", "unknown key 'config.optimiser.rat'; did you mean 'rate'?"),
    ("train", "optimiser=1", "expected --config.key=value"),
    ("train", "optimiser.rate.x=1", "config.optimiser.rate"),
    ("train", "btach=1", "unknown key 'config.btach'; did you mean 'batch'?"),
    ("train", "=1", "expected --config.key=value"),
    ("train", "batch", "expected --config.key=value"),
    ("train", ".=1", "unknown key"),
    ("train", "mesh.data=0", "config.mesh"),
    ("train", "mesh.data=x", "config.mesh"),
    ("train", "mesh.data=7", "config.mesh {'data': 7} does not fit"),
    ("train", "mesh.data=-2", "config.mesh"),
    ("train", "sharding=fdsp", "did you mean 'fsdp'?"),
    ("train", "sharding=(('(', 'fsdp'),)", "config.sharding"),
    ("train", "sharding=(('.*', ('modle',)),)", "config.sharding"),
    ("train", "sharding=(('head', 'fsdp'),('.*', 'replicated'))", "rule 'head' matches none"),
    ("train", "objective=classify", "did you mean 'classification'?"),
    ("train", "objective=tokens", "learns from a class for every word; digits has one class a row"),
    ("curve", "objective=spans", "learns from answers in texts; digits has one class a row; expected 'classification'"),
    ("train", "data=conll:nowhere", "nowhere: no such file or directory"),
    ("train", "data=squad", "squad:FILE"),
    ("train", "log_every=3", "must be a multiple of config.log_every 3"),
    ("train", "towers.vision=glyphs-vit", "config.towers is of contrastive objectives"),
    ("train", "cache=True", "config.cache"),
    ("train", "tokenizer=bytes", "config.tokenizer is of texts, digits holds images; leave it out"),
    ("train", "samples.tokens=0", "config.samples.tokens"),
    ("train", "samples.prompts=('a',)", "config.samples is of objective 'lm' alone"),
    ("train", "templates=('a {}',)", "config.templates is of contrastive objectives"),
    ("train", "crop=0.5,1.0", "config.crop is of contrastive objectives"),
    ("train", "crop=2,3", "config.crop"),
    ("train", "temperature_limit=50", "config.temperature_limit is of contrastive objectives"),
    ("train", "load.dtype=float23", "config.load.dtype"),
    ("curve", "load.include='('", "config.load.include: expected a regular expression"),
    ("curve", "load.include=encodr/.*", "include: rule 'encodr/.*' matches none of the 55 leaves; did you mean"),
    ("curve", "load.revision=v1", "backbone 'glyphs-vit' is embedded; revision='v1' is of a name on the"),
    ("train", "load.image=-8", "config.load.image"),
    ("train", "load.image=1000000000", "config.load.image"),
    ("train", "load.positions=cubic", "did you mean 'bicubic'?"),
    ("train", "model.architecture=vot", "unknown architecture 'vot'; did you mean 'vit'?"),
    ("train", "model.architecture=pixels", "config.model"),
    ("train", "model.width=0", "config.model.width"),
    ("train", "model.width=17", "width 17 is not a multiple of heads"),
    ("train", "model.depth=-1", "config.model.depth"),
    ("train", "model.depth=1000000000", "config.model.depth"),
    ("train", "model.dropout=1", "config.model.dropout"),
    ("train", "model.dtype=int8", "config.model.dtype"),
    ("train", "model.pool=maen", "did you mean 'mean'?"),
    ("train", "model.activation=gelo", "did you mean 'gelu'?"),
    ("train", "model.image=8", "config.model.image"),
    ("train", "model.image=(8,8,8)", "config.model.image"),
    ("train", "model.widht=1", "did you mean 'width'?"),
    ("train", "data=", "config.data: expected a text that is not empty, found ''"),
    ("train", "data=digit", "digits"),
    ("train", "data=npz:nowhere.npz", "nowhere.npz"),
    ("train", "data=folder:nowhere", "nowhere"),
    ("train", "backbone=nope nope", "unknown backbone 'nope nope'"),
    ("train", "backbone=https://example.org/x", "backbone 'https://example.org/x' is an address"),
    ("train", "backbone=file:///tmp", "file:///tmp"),
    ("train", "backbone=gs://nowhere/x", "gs://nowhere/x"),
    ("train", "backbone=~nobody-of-this-name/x", "there is no user of that name"),
    ("train", "method=lora(rank=4, rank=5)", "method 'lora': the option rank is given twice"),
    ("train", "method=lora(rank=0)", "method 'lora': rank: expected a whole number from 1 to 65,536, found 0"),
    ("train", "method=lora(rank=-1)", "rank"),
    ("train", "method=lora(rank=1000000000)", "rank"),
    ("train", "method=lora(rank='x')", "rank"),
    ("train", "method=lora(rank=9**9**9)", "options must be plain values"),
    ("train", "method=lora(alpha=1e999)", "alpha"),
    ("train", "method=lora(alpha=None)", "alpha"),
    ("train", "method=lora(dropout=1)", "dropout"),
    ("train", "method=lora(target='(')", "target"),
    ("train", "method=lora(ranks={'.*': 0})", "ranks"),
    ("train", "method=lora(ranks={'(': 1})", "ranks"),
    ("train", "method=lora(ranks=3)", "ranks"),
    ("train", "method=lora(rs=1)", "rs"),
    ("train", "method=lora(**{'rank': 4})", "option"),
    ("train", "method=lora(*(4,))", "plain values"),
    ("train", "method=lora(lora(4))", "plain values"),
    ("train", "method=lora + lora", "both update kernels"),
    ("train", "method=lora(rnk=4)", "did you mean 'rank'?"),
    ("train", "method=lroa", "did you mean 'lora'?"),
    ("train", "method=ｌora", "lora"),
    ("train", "method=lora + ", "is not of the form"),
    ("train", "method=lora - probe", "is not of the form"),
    ("train", "method=lora; probe", "is not of the form"),
    ("train", "method=" + "(" * 500, "is not of the form"),
    ("train", "method=" + "(" * 150 + "lora" + ")" * 150 + "(", "is not of the form"),
    ("train", "method=" + "-" * 5000 + "1", "method"),
    ("train", "method=" + " + ".join(["probe"] * 3000), "characters; expected 10,000 at most"),
    ("train", "method=top_blocks(0)", "k: expected a whole number of at least 1, found 0"),
    ("train", "method=top_blocks(k=99)", "k=99 is more than the"),
    ("train", "method=top_blocks()", "does not fit top_blocks(k"),
    ("train", "method=top_blocks(1, 2)", "does not fit"),
    ("train", "method=finetune(backbone=0)", "backbone"),
    ("train", "method=finetune(backbone=-1)", "backbone"),
    ("train", "method=rules()", "expected at least one pattern"),
    ("train", "method=rules('(')", "rules"),
    ("train", "method=rules('head/.*=fast')", "no number behind '='"),
    ("train", "method=rules('head/.*=nan')", "rate of 'head/.*'"),
    ("train", "method=rules('head/.*=-1')", "rate of 'head/.*'"),
    ("train", "method=rules(3)", "patterns"),
    ("train", "method=rules('nowhere/.*')", "rule 'nowhere/.*' matches none"),
    ("train", "method=frozen_norm", "nothing learns"),
    ("train", "method=__import__('os')", "unknown method '__import__'"),
    ("train", "method=probe.x", "there is no module 'probe'"),
    ("train", "method=finetune + jtransfer.no.x", "'jtransfer' has no file of a module 'jtransfer.no'"),
    ("train", "method=._x.y", "is not of the form"),
    ("curve", "methods=probe,mine.x(width=2)", "there is no module 'mine'"),
    ("advise", "methods=jtransfer.methods.loar", "did you mean 'lora'?"),
    ("evaluate", "protocols=jtransfer.methods.probe", "'jtransfer.methods.probe' does not fit"),
    ("train", "method=", "config.method"),
    ("train", "method=\x00", "config.method"),
    ("curve", "shots=0", "config.shots"),
    ("curve", "shots=1,-2", "config.shots"),
    ("curve", "shots=1,1.5", "config.shots"),
    ("curve", "shots=()", "config.shots: expected a list of at least one item"),
    ("curve", "shots=1000000000", "shots"),
    ("curve", "seeds=0", "config.seeds"),
    ("curve", "seeds=1000000000", "config.seeds"),
    ("curve", "steps=1000000000", "config.steps"),
    ("curve", "batch=1000000000", "config.batch"),
    ("curve", "methods=", "config.methods: expected a list of at least one item"),
    ("curve", "methods=()", "config.methods"),
    ("curve", "methods=prob", "did you mean 'probe'?"),
    ("curve", "methods=probe,5", "method"),
    ("curve", "methods=ridge(l2=())", "l2"),
    ("curve", "methods=ridge(l2=(0,))", "l2"),
    ("curve", "methods=ridge(l2=3)", "l2"),
    ("curve", "methods=logistic(l2=(1, 'x'))", "l2"),
    ("curve", "methods=prototypes('cosin')", "cosine"),
    ("curve", "methods=prototypes(kind=3)", "kind"),
    ("curve", "methods=lora + lora", "both update kernels"),
    ("curve", "hyper.default.rate=0", "config.hyper.default.rate"),
    ("curve", "hyper.default.rate=nan", "config.hyper.default.rate"),
    ("curve", "hyper.default.rate=()", "config.hyper.default.rate"),
    ("curve", "hyper.default.rate=fast,faster", "config.hyper.default.rate"),
    ("curve", "hyper.default.decay=-1", "config.hyper.default.decay"),
    ("curve", "hyper.default.steps=0", "config.hyper.default.steps"),
    ("curve", "hyper.default.steps=1,2", "config.hyper.default.steps"),
    ("curve", "hyper.default.rat=1", "did you mean 'rate'?"),
    ("curve", "hyper.lroa.rate=1", "unknown method 'lroa'; did you mean 'lora'?"),
    ("curve", "hyper=1", "hyper"),
    ("curve", "templates=nowhere.txt", "config.templates is of the method zero_shot"),
    ("curve", "load.tokens=8", "config.load.tokens is of texts"),
    ("curve", "test_rows=-1", "config.test_rows"),
    ("curve", "parallel=x", "config.parallel"),
    ("curve", "backbone=glyph-vit", "glyph-vit"),
    ("evaluate", "protocols=", "config.protocols: expected a list of at least one item"),
    ("evaluate", "protocols=prob", "did you mean 'probe'?"),
    ("evaluate", "protocols=knn(k=())", "protocol 'knn': k"),
    ("evaluate", "protocols=knn(k=(5, 'x'))", "protocol 'knn': k"),
    ("evaluate", "protocols=knn(k=(0,))", "protocol 'knn': k"),
    ("evaluate", "protocols=knn(temperature=0)", "temperature"),
    ("evaluate", "protocols=knn(k=(5,), k=(6,))", "given twice"),
    ("evaluate", "protocols=ridge(l2=(-1,))", "l2"),
    ("evaluate", "protocols=linear_grid(steps=0)", "steps"),
    ("evaluate", "protocols=linear_grid(rates=('x',))", "rates"),
    ("evaluate", "protocols=linear_grid(blocks=(0,))", "blocks"),
    ("evaluate", "protocols=episodes(ways=1)", "ways"),
    ("evaluate", "protocols=episodes(shots=0)", "shots"),
    ("evaluate", "protocols=episodes(episodes=10000000000)", "episodes"),
    ("evaluate", "protocols=clusters(restarts=0)", "restarts"),
    ("evaluate", "protocols=clusters(restarts=True)", "restarts"),
    ("evaluate", "protocols=domain_gap(permutations=0)", "permutations"),
    ("evaluate", "protocols=domain_gap", "source is missing"),
    ("evaluate", "protocols=attributes(folds=1)", "folds"),
    ("evaluate", "protocols=typographic(size=2)", "size"),
    ("evaluate", "protocols=zero_shot(templates=3)", "templates"),
    ("evaluate", "protocols=prototypes(kind='cosin')", "cosin"),
    ("evaluate", "layers=hidden_x", "layer 'hidden_x'"),
    ("evaluate", "layers=hidden_1.maen", "did you mean 'mean'?"),
    ("evaluate", "validation=0", "config.validation"),
    ("evaluate", "validation=1", "config.validation"),
    ("evaluate", "batch=-1", "config.batch"),
    ("evaluate", "mesh.data=1000", "config.mesh"),
    ("evaluate", "store=foo://x", "config.store foo://x"),
    ("evaluate", "steps=3", "unknown key 'config.steps'"),
    ("advise", "shots=0", "config.shots"),
    ("advise", "seeds=2", "config.seeds"),
    ("advise", "minutes=0", "config.minutes"),
    ("advise", "rows=-1", "config.rows"),
    ("advise", "methods=scratch", "uses no backbone"),
    ("advise", "methods=", "config.methods"),
    ("advise", "methods=knn", "unknown method 'knn'"),
    ("advise", "validation=2", "config.validation"),
    ("advise", "templates=x.txt", "config.templates"),
    ("advise", "test_rows=x", "config.test_rows"),
    ("inspect", "seeds=0", "config.seeds"),
    ("inspect", "methods=top_blocks(9)", "k=9 is more than the"),
]  # fmt: skip


@pytest.mark.parametrize(("command", "flag", "message"), some(FLAGS, 4))
def test_a_wrong_flag_is_refused_by_name(place, capsys, command, flag, message):
    name = file_of(BASE["curve" if command == "inspect" else command])
    workdir = [] if command == "inspect" else ["--workdir=run"]
    refused(capsys, [command, name, *workdir, f"--config.{flag}"], message)


CONFIG = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict"
FILES = {
    "import sys\nsys.exit(0)": "line 2: SystemExit: 0",
    "def get_config():\n    raise SystemExit": "line 2: SystemExit",
    "class Own(BaseException): pass\ndef get_config():\n    raise Own('x\\ny')": "line 3: Own: x y",
    "def get_config():\n    return get_config()": "RecursionError",
    "def get_config(:": "line 1: SyntaxError",
    "def get_config():\n  x = 1\n   return x": "line 3: IndentationError",
    "x = 1": "has no function get_config()",
    "get_config = 3": "has no function get_config()",
    "def get_config(a, b): pass": "TypeError",
    "def get_config(): return {}": "must return an ml_collections.ConfigDict",
    "def get_config(): pass": "must return an ml_collections.ConfigDict",
    "class Own(Exception):\n    def __str__(self): raise ValueError\ndef get_config(): raise Own": "line 3: Own",
    "class Own:\n    def __repr__(self): raise SystemExit\n" + CONFIG + "({'batch': Own()})": "what cannot be shown",
    CONFIG + "({1: 2})": "the key 1 is no text",
    CONFIG + "({'data': 'x' * 10**7})": "config.data: expected a text that is not empty, found 'xxx",
    "import nowhere_at_all": "line 1: ModuleNotFoundError",
    "x = 'a\0b'": "null bytes",
    CONFIG + "({'batch': 10**5000})": "config.batch",
    CONFIG + "({'batch': get_config})": "config.batch",
    CONFIG + "({'btach': 1})": "did you mean 'batch'?",
    CONFIG + "({'batch': {'a': 1}})": "must be a value",
    CONFIG + "({'load': 1})": "a section of keys",
    "from ml_collections import ConfigDict\nfrom ml_collections.config_dict import required_placeholder as r\n"
    "def get_config(): return ConfigDict({'batch': r(int)})": "RequiredValueError",
}


@pytest.mark.parametrize(("text", "message"), FILES.items())
def test_whatever_a_config_file_does_is_said_with_its_line(place, capsys, text, message):
    Path("own.py").write_text(text)
    refused(capsys, ["train", "--config=own.py", "--workdir=run"], "own.py", message)


def test_a_config_that_is_no_plain_file_is_refused_at_once(place, capsys):
    os.mkfifo("pipe.py")
    Path("dangling.py").symlink_to("nowhere.py")
    Path("loop.py").symlink_to("loop.py")
    Path("directory.py").mkdir()
    Path("binary.py").write_bytes(b"\xff\xfe\x00x = 1")
    Path("latin.py").write_bytes("x = 'é'".encode("latin-1"))
    for name, message in {
        "pipe.py": "a pipe or device, not a file",
        "dangling.py": "is a link to nothing",
        "loop.py": "cannot be read",
        "directory.py": "a directory, not a file",
        "/dev/zero": "a pipe or device, not a file",
        "binary.py": "binary.py",
        "latin.py": "SyntaxError",
        "": "--config is empty",
        " ": "--config is empty",
        "foo://x.py": "expected a path on a disk",
        "gs://nowhere/x.py": "gs://nowhere/x.py",
        "pipe.py/x.py": "cannot be read",
        "a" * 300: "cannot be read",
        "~nobody-of-this-name/x.py": "no user of that name",
    }.items():
        refused(capsys, ["train", f"--config={name}", "--workdir=run"], message)


def test_a_path_of_a_config_may_hold_colons(place):
    Path("a:b").mkdir()
    file_of({"batch": 7}, "a:b/c:d.py")
    assert config.load("curve", "a:b/c:d.py", [])[1].batch == 7
    Path("a:b/e.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(x): return ConfigDict({'data': x})\n"
    )
    assert config.load("curve", "a:b/e.py:npz:x", [])[1].data == "npz:x"


@pytest.mark.parametrize("command", ["train", "curve", "evaluate", "advise"])
def test_a_workdir_that_can_be_none_is_refused_before_anything_is_read(place, capsys, command):
    os.mkfifo("pipe")
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    for workdir, message in {
        "": "--workdir is empty",
        "file": "file is a file",
        "file/below": "file is a file",
        "pipe": "a pipe or device",
        "dangling": "a link to nothing",
        "foo://x": "expected a path on a disk",
        "gs://": "expected a path on a disk",
        "~nobody-of-this-name": "no user of that name",
        "a\0b": "NUL",
    }.items():
        refused(capsys, [command, "--config=not read.py", f"--workdir={workdir}"], message)


def test_flags_that_are_wrong_are_refused_by_the_parser(place, capsys):
    for arguments, message in {
        ("trian",): "did you mean 'train'?",
        ("train",): "--config",
        ("train", "--config=x", "--workdir=a", "--workdir=b"): "--workdir is given twice",
        ("curve", "--config=x", "--workdir=a", "--config.methods=a", "--config.methods=b"): "--config.methods is given",
        ("train", "--config=x", "--config=y", "--workdir=a"): "--config is given twice",
        ("train", "--config=x", "--workdr=a"): "--workdir",
        ("inspect", "--config=x", "--workdir=a"): "unknown flag '--workdir=a'",
        ("export", "--workdir=a", "--format=hf"): "--out",
        ("export", "--workdir=a", "--format=hf", "--out=b", "--config.batch=3"): "unknown flag",
        ("train", "--config=x", "--workdir=a", "batch=3"): "unknown flag 'batch=3'",
    }.items():
        refused(capsys, arguments, message)


def test_an_export_that_cannot_be_is_refused_first(place, capsys):
    Path("run").mkdir()
    Path("run/config.json").write_text("{}")
    Path("file").write_text("")
    for workdir, format, out, message in [
        ("run", "hff", "out", "did you mean 'hf'?"),
        ("run", "hf", "/", "outside --workdir"),
        ("run", "hf", "run", "is not empty"),
        ("run", "hf", "run/out", "outside --workdir"),
        ("run", "hf", ".", "outside --workdir"),
        ("run", "hf", "", "--out is empty"),
        ("run", "hf", "file", "file is a file"),
        ("run", "hf", "gs://nowhere/x", "gs://nowhere/x"),
        ("run", "hf", "foo://x", "--out foo://x"),
        ("", "hf", "out", "--workdir is empty"),
        ("nowhere", "hf", "out", "no config.json"),
        ("file", "hf", "out", "file"),
    ]:
        refused(capsys, ["export", f"--workdir={workdir}", f"--format={format}", f"--out={out}"], message)


CALLS = {
    "load(3)": lambda: jtransfer.load(3),
    "load('')": lambda: jtransfer.load(""),
    "load(positions=[])": lambda: jtransfer.load("glyphs-vit", positions=[]),
    "load(head='nope')": lambda: jtransfer.load("glyphs-vit", head="nope"),
    "load(head=3)": lambda: jtransfer.load("glyphs-vit", head=3),
    "load(dtype='int8')": lambda: jtransfer.load("glyphs-vit", dtype="int8"),
    "lora(rank=0)": lambda: methods.lora(rank=0),
    "lora(rank=2.0)": lambda: methods.lora(rank=2.0),
    "lora(rank=True)": lambda: methods.lora(rank=True),
    "lora(alpha=nan)": lambda: methods.lora(alpha=float("nan")),
    "lora(target=3)": lambda: methods.lora(target=3),
    "lora(ranks=[1])": lambda: methods.lora(ranks=[1]),
    "lora() + lora()": lambda: methods.lora(target="a") + methods.lora(target="b"),
    "top_blocks('1')": lambda: methods.top_blocks("1"),
    "finetune('x')": lambda: methods.finetune("x"),
    "rules(3)": lambda: methods.rules(3),
    "parse(3)": lambda: methods.parse(3),
    "parse(None)": lambda: methods.parse(None),
    "Optimiser(rate='x')": lambda: Optimiser(rate="x"),
    "Optimiser(rate=-1)": lambda: Optimiser(rate=-1),
    "Optimiser(b1=1.0)": lambda: Optimiser(b1=1.0),
    "Optimiser(no_decay='(')": lambda: Optimiser(no_decay="("),
    "Optimiser(name=3)": lambda: Optimiser(name=3),
    "make_mesh({'data': 'x'})": lambda: make_mesh({"data": "x"}),
    "make_mesh({3: 1})": lambda: make_mesh({3: 1}),
    "prepare({})": lambda: runs.prepare({}),
    "prepare(ConfigDict())": lambda: runs.prepare(ConfigDict()),
    "curves.prepare(3)": lambda: curves.prepare(3),
    "evaluate.prepare(None)": lambda: evaluate.prepare(None),
    "advise.prepare(ConfigDict({'seeds': 1}))": lambda: advise.prepare(ConfigDict({"seeds": 1})),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_refuse_what_they_cannot_take_in_one_line(call):
    before = len(compiled)
    with pytest.raises(InputError) as refusal:
        call()
    assert "\n" not in str(refusal.value) and len(compiled) == before


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("knn(k=(5,), temperature=0.1),probe", ["knn(k=(5,), temperature=0.1)", "probe"]),
        (
            "linear_grid(blocks=(1,), rates=(0.1,)),ridge(l2=(1,))",
            ["linear_grid(blocks=(1,), rates=(0.1,))", "ridge(l2=(1,))"],
        ),
        (
            "probe, lora(ranks={'a,(': 1}, target='b') + bitfit",
            ["probe", "lora(ranks={'a,(': 1}, target='b') + bitfit"],
        ),
    ],
)
def test_commas_in_brackets_and_quotes_part_no_items(place, text, items):
    key = "protocols" if "grid" in text or "knn" in text else "methods"
    command = "evaluate" if key == "protocols" else "curve"
    assert list(config.load(command, file_of({})[9:], [f"--config.{key}={text}"])[1][key]) == items


def test_numbers_of_numpy_are_numbers_in_a_config_and_in_what_is_written(place):
    Path("own.py").write_text(
        "import numpy as np\nfrom ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict("
        "{'seeds': np.int64(3), 'smoothing': np.float32(0.5), 'hyper': {'probe': {'rate': np.array([0.5, 1.0])}}})\n"
    )
    loaded = config.resolved(config.load("curve", "own.py", [])[1])
    assert (loaded["seeds"], loaded["smoothing"], loaded["hyper"]["probe"]["rate"]) == (3, 0.5, [0.5, 1.0])
    assert kinds.whole(1).takes(np.int64(1)) and not kinds.whole(1).takes(np.bool_(True))


def test_what_a_config_prints_stays_out_of_the_output_of_a_command(place, capsys):
    Path("own.py").write_text(
        "print('hello')\nfrom ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seeds': 3})\n"
    )
    config.load("curve", "own.py", [])
    assert capsys.readouterr() == ("", "hello\n")


def test_there_are_more_than_300():
    assert len(GENERATED) + len(FLAGS) + len(FILES) + len(CALLS) > 300
