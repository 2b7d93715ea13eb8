"""What `jt.families()` says is what loads and what goes out."""

import pytest

import jtransfer as jt
from jtransfer import checkpoints
from jtransfer.checkpoints import layouts
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.huggingface import family_of
from jtransfer.models import MODELS, build, described, of_config


def test_every_architecture_and_every_model_type_is_in_one_family():
    known = jt.families()
    assert list(known) == list(MODELS)
    assert sorted(name for one in known.values() for name in one.model_types) == sorted(FAMILIES)
    assert known["gpt2"].model_types == ("gpt2",) and {"vit", "deit", "dinov2"} < set(known["vit"].model_types)
    assert set(known["gpt2"].heads) == {"causal_lm", "sequence"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_type_is_read_into_its_family_and_written_from_it(model_type):
    family = FAMILIES[model_type]
    config = family.read({}, {})
    assert model_type in jt.families()[described(config)["architecture"]].model_types
    assert family.write(config)["model_type"] == model_type


def test_a_family_goes_out_where_a_class_says_its_models():
    for architecture, known in jt.families().items():
        if known.exports:
            model = of_config(FAMILIES[known.model_types[0]].read({}, {}))
            assert family_of(checkpoints.Backbone("mine", model, {}))[0] in known.model_types
        else:
            assert architecture in ("awd_lstm", "elmo", "pixels", "word_vectors")
            model = build(architecture, **({"image": (8, 8), "channels": 3} if architecture == "pixels" else {}))
            with pytest.raises(jt.InputError, match=f"Hugging Face has no model of the architecture '{architecture}'"):
                family_of(checkpoints.Backbone("mine", model, {}))


def test_a_checkpoint_loads_in_each_layout_that_a_family_names(write_checkpoint, tmp_path):
    named = {(layout, name) for name, known in jt.families().items() for layout in known.layouts}
    foreign = {(layout, name) for layout, name in named if layout in layouts.FOREIGN}
    assert foreign == write_checkpoint.foreign
    for layout, name in [("huggingface", "vit"), ("jtransfer", "vit"), *foreign]:
        backbone = jt.load(str(write_checkpoint(tmp_path / layout / name, layout, name)), sharding="host")
        assert (backbone.origin.layout, described(backbone.config)["architecture"]) == (layout, name)
