"""What a method made of a base, kept as its delta: read back as it was, on that base alone, or refused in one line."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import checkpoints, imports, methods, models
from jtransfer.checkpoints import Adapter, bases, deltas
from jtransfer.errors import Damaged, InputError
from jtransfer.models import Head
from jtransfer.tree import FROZEN

MINE = str(Path(__file__).parents[1] / "extension/my_methods.py")
HOULSBY = "my_methods.houlsby(width=2) + bitfit"
PIXELS = {"pixel_values": np.random.default_rng(0).random((3, 8, 8, 1)).astype(np.float32)}


@pytest.fixture(autouse=True)
def anew():
    """Forget the user's module, as a new process has not imported it."""
    sys.modules.pop("my_methods", None)
    yield
    sys.modules.pop("my_methods", None)


@pytest.fixture
def base(tmp_path, vit, backbone):
    """The directory of a model with a head of five classes."""
    leaves = {path.replace("source_head/", "head/"): leaf for path, leaf in backbone.items()}
    checkpoints.save(tmp_path / "base", vit, leaves, tuple("abcde"))
    return tmp_path / "base"


def adapted(text, base, **options):
    """What training by a method might make of a base: a head of three classes, and all that learns moved at random."""
    with imports.beside(Path(MINE).parent):
        method = methods.parse(text)
    backbone = jt.load(str(base), **options)
    model = models.Classifier(backbone.model, 3)
    made = methods.adapt(method, model, backbone.params | backbone.state, backbone.config.inputs)
    tree, _ = jax.jit(made.start)(jax.random.key(0), made.base)
    rng = np.random.default_rng(1)
    learns = {path: rng.normal(0.1, 0.3, x.shape).astype("float32") for path, x in tree.items() if made.rates[path]}
    return Adapter(backbone, method, learns, Head(3), ("x", "y", "z"))


def saved(text, base, where):
    with imports.beside(Path(MINE).parent):
        made = adapted(text, base)
        deltas.check(made)
        deltas.save(where, made)
    return made


def change(directory, edit):
    """Change the config of a directory by hand, as its record then no longer tells."""
    values = json.loads((directory / "config.json").read_text())
    edit(values)
    (directory / "config.json").write_text(json.dumps(values))
    (directory / "jtransfer.json").unlink(missing_ok=True)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], name)


def test_what_does_not_merge_runs_under_its_method_with_outputs_equal_to_the_bit(base, tmp_path):
    made = saved(HOULSBY, base, tmp_path / "mine")
    loaded = jt.load(str(tmp_path / "mine"), trust=[MINE])
    assert_equal(loaded(PIXELS), made(PIXELS))
    assert (loaded.head, loaded.classes) == (Head(3), ("x", "y", "z"))
    assert [method.text for method in loaded.methods] == [HOULSBY]
    assert "source_head/kernel" in loaded.params and loaded.params["source_head/kernel"].shape == (16, 3)
    assert loaded.without_head()(PIXELS).keys() == made(PIXELS).keys() - {"logits"}


@pytest.mark.parametrize("text", ["lora(rank=2, alpha=3.0)", "probe", "bitfit", "lora(rank=1, target='.*') + bitfit"])
def test_what_merges_is_the_plain_model_and_the_file_has_what_was_trained_and_no_byte_more(text, base, tmp_path):
    made = saved(text, base, tmp_path / "mine")
    loaded, merged = jt.load(str(tmp_path / "mine")), made.merged()
    assert loaded.methods == () and isinstance(loaded.model, models.ViT)
    assert loaded.params.keys() == merged.params.keys()
    assert_equal(loaded(PIXELS), merged(PIXELS))

    learns = methods.adapt(made.method, made.model, made.backbone.params, made.backbone.config.inputs).rates
    assert made.params.keys() == {path for path, rate in learns.items() if rate != FROZEN}
    file = (tmp_path / "mine/model.safetensors").read_bytes()
    assert len(file) - 8 - int.from_bytes(file[:8], "little") == sum(x.nbytes for x in made.params.values())


def test_an_adapter_is_a_base_too_and_the_last_of_a_chain_has_all_of_it(base, tmp_path):
    saved(HOULSBY, base, tmp_path / "one")
    one = jt.load(str(tmp_path / "one"), trust=[MINE])
    model, method = models.Classifier(one.model, 2), methods.parse("lora(rank=1, target='.*(query|up)')")
    made = methods.adapt(method, model, one.params | one.state, one.config.inputs)
    tree, _ = jax.jit(made.start)(jax.random.key(3), made.base)
    two = Adapter(one, method, {path: x + 0.1 for path, x in tree.items() if made.rates[path]}, Head(2), ("n", "y"))
    deltas.check(two)
    deltas.save(tmp_path / "two", two)
    with pytest.raises(
        InputError, match=r"two/config.json: the base '.*one' does not load: .*one/config.json: .*trust"
    ):
        jt.load(str(tmp_path / "two"))
    loaded = jt.load(str(tmp_path / "two"), trust=[MINE])
    assert_equal(loaded(PIXELS), two.merged()(PIXELS))
    with pytest.raises(InputError, match="adds 'attention_bottleneck' where the model has it already"):
        methods.adapt(
            adapted(HOULSBY, base).method, models.Classifier(loaded.model, 2), loaded.params, loaded.config.inputs
        )


def test_the_base_may_move_with_what_was_made_of_it_and_not_change(base, tmp_path, monkeypatch, vit):
    monkeypatch.chdir(tmp_path)
    made = adapted("bitfit", "base")
    deltas.save("runs/mine", made)
    assert json.loads(Path("runs/mine/config.json").read_text())["base"]["name"] == "../../base"
    Path("moved").mkdir()
    shutil.move("runs", "moved/runs")
    with pytest.raises(InputError, match=r"moved/runs/mine/config.json: the base '../../base' does not load: unknown"):
        jt.load("moved/runs/mine")
    shutil.move("base", "moved/base")
    monkeypatch.chdir("/")
    assert_equal(jt.load(str(tmp_path / "moved/runs/mine"))(PIXELS), made.merged()(PIXELS))
    other = {path: x + 1e-3 for path, x in made.backbone.params.items() if not path.startswith("source_head/")}
    checkpoints.save(tmp_path / "moved/base", vit, other)
    with pytest.raises(
        InputError, match=r"base '../../base' with the fingerprint \w{16} is expected, the one of '/.*/moved/base' is"
    ):
        jt.load(str(tmp_path / "moved/runs/mine"))


def test_a_base_is_known_by_its_weights_and_options_whatever_its_dtype_head_and_later_defaults(base):
    known = jt.load(str(base))
    same = [jt.load(str(base), dtype="bfloat16"), jt.load(str(base), head=""), jt.load(str(base), classes=7)]
    assert {bases.fingerprint(one, head=False) for one in same} == {bases.fingerprint(known, head=False)}
    config = dataclasses.replace(known.config, pool="cls")
    others = [dataclasses.replace(known, model=models.of_config(config)), jt.load(str(base), image=16)]
    prints = {bases.fingerprint(one, head=False) for one in (known, *others)}
    assert len(prints) == 3 and bases.fingerprint(known, head=True) not in prints


def test_a_base_is_read_again_as_it_was_read_for_other_images_or_as_one_tower(tmp_path):
    made = adapted("bitfit", "glyphs-vit", image=16)
    deltas.save(tmp_path / "larger", made)
    assert jt.load(str(tmp_path / "larger")).config.image == (16, 16)
    assert jt.load(str(tmp_path / "larger"), image=24).config.image == (24, 24)
    tower = jt.load("glyphs-clip").tower("vision")
    method, model = methods.probe(), models.Classifier(tower.model, 2)
    head = {path: x for path, x in models.shapes_of(model, tower.config.inputs).items() if path.startswith("head/")}
    made = Adapter(tower, method, {path: np.ones(x.shape, x.dtype) for path, x in head.items()}, Head(2), ("n", "y"))
    deltas.check(made)
    deltas.save(tmp_path / "tower", made)
    loaded = jt.load(str(tmp_path / "tower"))
    assert type(loaded.model) is type(tower.model)
    images = {"pixel_values": np.ones((1, *loaded.config.inputs["pixel_values"].shape[1:]), np.float32)}
    assert_equal(loaded(images), made.merged()(images))


def test_head_classes_places_and_types_are_those_that_are_asked_for(base, tmp_path):
    saved(HOULSBY, base, tmp_path / "mine")
    load = lambda **options: jt.load(str(tmp_path / "mine"), trust=[MINE], **options)  # noqa: E731
    assert load(head="").head is None and load(head="").classes == ()
    assert load(classes=4).fresh == ("source_head/bias", "source_head/kernel")
    assert {str(leaf.dtype) for leaf in load(param_dtype="bfloat16").params.values()} == {"bfloat16"}
    assert all(isinstance(leaf, np.ndarray) for leaf in load(sharding="host").params.values())
    with pytest.raises(InputError, match="no head 'masked_lm'"):
        load(head="masked_lm")


def test_another_source_of_the_method_is_said_and_is_another_model(base, tmp_path, caplog):
    (tmp_path / "my_methods.py").write_bytes(Path(MINE).read_bytes())
    saved(HOULSBY, base, tmp_path / "mine")
    before = jt.load(str(tmp_path / "mine"), trust=[MINE]).fingerprint
    assert "source" not in caplog.text
    sys.modules.pop("my_methods")
    path = tmp_path / "my_methods.py"
    path.write_text(path.read_text().replace("gelu(", "silu("))
    after = jt.load(str(tmp_path / "mine"), trust=[str(path)])
    assert "the source of module 'my_methods' is not the one that it was saved with" in caplog.text
    assert after.fingerprint != before


def test_what_its_text_does_not_say_is_not_saved(base):
    lora = adapted("lora(rank=2)", base)
    for method in (methods.lora(rank=2, alpha=3.0), dataclasses.replace(lora.method, name="lora(rank=2)+")):
        with pytest.raises(InputError, match="method 'lora.*text|an adapter is read by its method's text"):
            deltas.check(dataclasses.replace(lora, method=method))
    with imports.beside(Path(MINE).parent), pytest.raises(InputError, match="it may change the head"):
        deltas.check(adapted("lora(rank=1, target='head|.*query') + my_methods.houlsby", base))
    few = {path: x for path, x in lora.params.items() if "block_0" not in path}
    with pytest.raises(InputError, match="what is kept of it and what it adds and trains differ in encoder/block_0/"):
        deltas.check(dataclasses.replace(lora, params=few))
    slow = dataclasses.replace(lora.method, name="rules('(a+)+b')")
    with pytest.raises(InputError, match="repeats what repeats"):
        deltas.check(dataclasses.replace(lora, method=slow))


LIES = {
    "unknown method 'lore'; did you mean 'lora'": lambda v: v.update(method="lore"),
    "method '.*' is not of the form": lambda v: v.update(method="import os; os.exit()"),
    "method: expected a text that is not empty, found 3": lambda v: v.update(method=3),
    "has 1401 parts; expected 200 at most|is not of the form": lambda v: v.update(method="bitfit+" * 1400 + "bitfit"),
    "repeats what repeats": lambda v: v.update(method="rules('(a+)+b')"),
    "no key 'fingerprnt'|base.fingerprint: expected": lambda v: v["base"].update(
        fingerprnt=v["base"].pop("fingerprint")
    ),
    "with the fingerprint 00ff is expected": lambda v: v["base"].update(fingerprint="00ff"),
    "base is 'base'; expected an object": lambda v: v.update(base="base"),
    "base has no key 'param_dtype'": lambda v: v["base"].update(param_dtype="float16"),
    "does not load: image.0.=-1": lambda v: v["base"].update(image=-1),
    "does not load: .* has no tower 'vision'": lambda v: v["base"].update(tower="vision"),
    "stands on itself": lambda v: v["base"].update(name="./."),
    "base.name: expected a text": lambda v: v["base"].update(name="../base\0"),
    "does not load: it lies in another store": lambda v: v["base"].update(name="gs://bucket/base"),
    "does not load: unknown backbone 'some/where'.*not in the hub's cache": lambda v: v["base"].update(
        name="some/where"
    ),
    "unknown key 'heads'": lambda v: v.update(heads=v.pop("classes")),
    "1 of another shape|has shape .* for head/bias": lambda v: v.update(classes=["x", "y"]),
    r"is missing for encoder/block_0/attention/query/lora/a": lambda v: v.update(method="lora + bitfit"),
    r"belongs to no leaf": lambda v: v.update(method="probe"),
    "head has no option 'readz'": lambda v: v.update(head={"readz": "first"}),
}


@pytest.mark.parametrize("expected", LIES)
def test_a_lie_in_its_config_is_one_line(expected, base, tmp_path):
    saved("bitfit", base, tmp_path / "mine")
    change(tmp_path / "mine", LIES[expected])
    with pytest.raises(InputError, match=expected) as raised:
        jt.load(str(tmp_path / "mine"))
    assert str(raised.value).count("\n") == 0 and str(tmp_path / "mine") in str(raised.value)


def test_damage_is_told_by_the_record_beside_it(base, tmp_path):
    saved("bitfit", base, tmp_path / "mine")
    for name in ("config.json", "model.safetensors"):
        path = tmp_path / "mine" / name
        good = path.read_bytes()
        path.write_bytes(good[:-2] + b"\0" + good[-1:])
        with pytest.raises(Damaged, match=f"{name} is damaged"):
            jt.load(str(tmp_path / "mine"))
        path.write_bytes(good)
    (tmp_path / "mine/extra.safetensors").write_bytes(b"")
    with pytest.raises(Damaged, match="extra.safetensors was not written with the files beside it"):
        jt.load(str(tmp_path / "mine"))


def test_a_foreign_config_cannot_allow_what_its_reader_does_not(base, tmp_path):
    saved(HOULSBY, base, tmp_path / "mine")
    sys.modules.pop("my_methods", None)
    with (
        imports.trusting((), "workdir theirs", "--trust={0}"),
        pytest.raises(InputError, match="say --trust=my_methods"),
    ):
        jt.load(str(tmp_path / "mine"), trust=[MINE])
    inside = imports.trusting(["my_methods"], "workdir theirs", "--trust={0}")
    with inside, pytest.raises(InputError, match="there is no module 'my_methods'"):  # whose path is of the config
        jt.load(str(tmp_path / "mine"), trust=[MINE])
    assert "my_methods" not in sys.modules


def test_nothing_that_others_read_takes_a_model_under_a_method_for_a_plain_one(base, tmp_path):
    saved(HOULSBY, base, tmp_path / "mine")
    loaded = jt.load(str(tmp_path / "mine"), trust=[MINE])
    with pytest.raises(InputError, match="runs under the method .*, which no model of Hugging Face has"):
        checkpoints.to_huggingface(tmp_path / "hf", loaded)
    checkpoints.to_orbax(tmp_path / "orbax", loaded)
    assert json.loads((tmp_path / "orbax/config.json").read_text())["method"] == HOULSBY
