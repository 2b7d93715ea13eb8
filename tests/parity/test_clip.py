"""Our CLIP and SigLIP are those of transformers, both towers or one: checkpoints in, outputs, gradients and
checkpoints out."""

import json
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from jtransfer import checkpoints
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import apply

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
VOCABULARY, CLASSES, ROWS = 30, 5, 3
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "image_size": 23,  # no multiple of the patch
    "patch_size": 5,
    "num_channels": 2,
    "layer_norm_eps": 0.05,
}
SHALLOW = VISION | {"num_hidden_layers": 1}
TEXT = {
    "hidden_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 5,
    "intermediate_size": 36,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 9,
    "layer_norm_eps": 0.02,
}
END, LEGACY_END = 20, 2
"""An end of text that is not the largest id, and what OpenAI's configs call one, so that the largest id is meant."""

LAION, OPENAI = {"hidden_act": "gelu"}, {"hidden_act": "quick_gelu"}
SIGLIP = {"hidden_act": "gelu_pytorch_tanh"}
NEW, OLD = TEXT | LAION | {"eos_token_id": END}, TEXT | OPENAI | {"eos_token_id": LEGACY_END}
LAST = TEXT | SIGLIP | {"projection_size": 24}
ANY_SIDES = {key: x for key, x in SHALLOW.items() if key != "image_size"} | SIGLIP | {"num_patches": 9}
GRIDS = (((2, 5), (3, 4), (1, 3)), ((4, 2), (2, 2), (1, 8)))
"""Rows and columns of patches of NaFlex's images in two batches, more than there are learned positions, and fewer."""

VARIANTS = {
    "clip laion": ("CLIPModel", VISION | LAION, NEW, {"projection_dim": 7}),
    "clip openai": ("CLIPModel", VISION | OPENAI, OLD, {"projection_dim": 31}),
    "clip vision": ("CLIPVisionModel", VISION | LAION, None, {}),
    "clip vision projected": ("CLIPVisionModelWithProjection", SHALLOW | OPENAI, None, {"projection_dim": 7}),
    "clip text": ("CLIPTextModel", None, NEW, {}),
    "clip text projected": ("CLIPTextModelWithProjection", None, OLD, {"projection_dim": 7}),
    "clip classifier": ("CLIPForImageClassification", SHALLOW | OPENAI, NEW, {"num_labels": CLASSES}),
    "siglip": ("SiglipModel", VISION | SIGLIP, LAST, {}),
    "siglip vision": ("SiglipVisionModel", VISION | SIGLIP, None, {}),
    "siglip vision without pooling": ("SiglipVisionModel", SHALLOW | {"vision_use_head": False}, None, {}),
    "siglip text": ("SiglipTextModel", None, LAST, {}),
    "siglip2": ("Siglip2Model", ANY_SIDES, LAST, {}),
    "siglip2 vision": ("Siglip2VisionModel", ANY_SIDES, None, {}),
    "siglip2 classifier": (
        "Siglip2ForImageClassification",
        ANY_SIDES | {"vision_use_head": False},
        LAST,
        {"num_labels": CLASSES},
    ),
    "siglip classifier": ("SiglipForImageClassification", SHALLOW | SIGLIP, LAST, {"num_labels": CLASSES}),
}


def build(variant):
    """A model of transformers."""
    name, vision, text, more = VARIANTS[variant]
    model = getattr(transformers, name)
    both = {"vision_config": vision, "text_config": text}
    return model(model.config_class(**(both if vision and text else vision or text), **more))


def batches(backbone):
    """Two batches of what a backbone takes: texts of several lengths, padded on the right, then texts in full."""
    rng, inputs = np.random.default_rng(1), backbone.config.inputs
    for lengths, grids in zip(((4, 9, 6), (9, 9, 9)), GRIDS, strict=True):
        batch = {}
        if "spatial_shapes" in inputs:
            shapes = np.array(grids)
            mask = (np.arange(12) < shapes.prod(1)[:, None]).astype(np.int64)
            pixels = rng.standard_normal((ROWS, 12, inputs["pixel_values"].shape[-1])).astype(np.float32)
            batch |= {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}
        elif "pixel_values" in inputs:
            batch["pixel_values"] = rng.standard_normal((ROWS, *inputs["pixel_values"].shape[1:])).astype(np.float32)
        if "input_ids" in inputs:
            ids = rng.integers(3, VOCABULARY - 1, (ROWS, 9))
            ids[ids == END] = END + 1
            mask = np.arange(9) < np.array(lengths)[:, None]
            largest = getattr(backbone.config, "text", backbone.config).pool == "largest"
            ids[:, -1] = ids[~mask] = VOCABULARY - 1 if largest else END  # padding is the end of text again
            for row, length in zip(ids, lengths, strict=True):
                row[length - 1 :] = VOCABULARY - 1 if largest else END
            batch |= {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        yield batch


def loss_of_pairs(logits, biased):
    """The contrastive cross-entropy, mean of both directions; where there is a bias, SigLIP's sum over all pairs."""
    if biased:
        return -jax.nn.log_sigmoid((2 * np.eye(ROWS) - 1) * logits).sum(-1).mean()
    each = optax.softmax_cross_entropy_with_integer_labels
    return (each(logits, np.arange(ROWS)).mean() + each(logits.T, np.arange(ROWS)).mean()) / 2


def predicted(outputs):
    """What a cross-entropy is taken of, for one tower."""
    names = ("logits", "image_embeds", "text_embeds", "pooler_output")
    found = [outputs[name] for name in names if outputs.get(name) is not None]
    return found[0] if found else outputs["last_hidden_state"].mean(1)


def theirs_of(peer, batch, **options):
    """The outputs of a torch model, as its user sees them."""
    inputs = {name: torch.from_numpy(x) for name, x in batch.items()}
    if "pixel_values" in inputs and inputs["pixel_values"].ndim == 4:
        inputs["pixel_values"] = inputs["pixel_values"].permute(0, 3, 1, 2)
    return dict(peer(**inputs, output_hidden_states=True, **options))


def check_same(ours, theirs, where=""):
    """Everything that they have, we have."""
    for name, expected in theirs.items():
        if name == "hidden_states":
            for one, other in zip(ours[name], expected, strict=True):
                np.testing.assert_allclose(one, other.detach(), **CLOSE, err_msg=where + name)
        elif hasattr(expected, "items"):
            check_same(ours[name], expected, f"{where}{name}/")
        else:
            assert tuple(ours[name].shape) == tuple(expected.shape)
            np.testing.assert_allclose(ours[name], expected.detach(), **CLOSE, err_msg=where + name)


@pytest.fixture(scope="module")
def make(randomised, tmp_path_factory):
    """`make(variant) -> (model of transformers, the directory where it is saved)`, each made once."""
    made = {}

    def saved(variant):
        if variant not in made:
            peer = randomised(build(variant)).requires_grad_(True)
            directory = tmp_path_factory.mktemp("clip")
            peer.save_pretrained(directory)
            made[variant] = peer, directory
        return made[variant]

    return saved


@pytest.fixture(scope="module", params=VARIANTS)
def case(request, make):
    """A variant saved by transformers and loaded by us; on two batches, the outputs and every gradient of both."""
    peer, directory = make(request.param)
    backbone = checkpoints.load(str(directory))
    names = FAMILIES[peer.config.model_type].names(backbone.config, backbone.origin.kind)
    labels = np.random.default_rng(2).integers(0, CLASSES, ROWS)

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def run(params, batch):
        def loss(params):
            outputs = apply(backbone.whole, params, batch, output_hidden_states=True)
            if "logits_per_text" in outputs:
                return loss_of_pairs(outputs["logits_per_text"], "logit_bias" in params), outputs
            return optax.softmax_cross_entropy_with_integer_labels(predicted(outputs), labels).mean(), outputs

        gradients, outputs = jax.grad(loss, has_aux=True)(params)
        return outputs, gradients

    runs = []
    for batch in batches(backbone):
        peer.zero_grad()
        full = all(np.all(x) for name, x in batch.items() if name == "attention_mask")
        given = {name: x for name, x in batch.items() if not (full and name == "attention_mask")}
        theirs = theirs_of(
            peer, given, **({"return_loss": True} if {"pixel_values", "input_ids"} <= batch.keys() else {})
        )
        loss = theirs.pop("loss", None)
        loss = torch.nn.functional.cross_entropy(predicted(theirs), torch.from_numpy(labels)) if loss is None else loss
        loss.backward()
        gradients = {
            path: layout.load(parameter.grad.numpy().copy())[part]
            for name, parameter in peer.named_parameters()
            if parameter.grad is not None
            for path, layout, part in names.targets(name)
        }
        runs.append((*run(backbone.params, batch), theirs, gradients))
    return SimpleNamespace(peer=peer, directory=directory, backbone=backbone, names=names, runs=runs)


def test_every_output_is_that_of_transformers_hidden_states_among_them(case):
    for ours, _, theirs, _ in case.runs:
        check_same(ours, theirs)


def test_the_gradient_of_every_weight_is_that_of_transformers(case):
    for _, ours, _, theirs in case.runs:
        assert {path for path, x in ours.items() if np.any(x)} <= theirs.keys() <= ours.keys()
        for path, gradient in theirs.items():
            largest = np.abs(gradient).max()
            # A bias of the keys adds the same to all scores of a query, so its gradient is zero.
            assert largest > 1e-4 or path.endswith("key/bias"), path
            np.testing.assert_allclose(ours[path], gradient, atol=1e-3 * max(largest, 1e-3), rtol=0, err_msg=path)


def test_what_goes_out_again_is_the_file_that_came_in_bit_by_bit(case):
    tensors, written = load_file(case.directory / "model.safetensors"), case.names.write(case.backbone.params)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].shape == tensor.shape
        assert written[name].tobytes() == tensor.tobytes(), name


def test_transformers_computes_the_same_from_what_is_written(case, tmp_path):
    backbone, peer = case.backbone, type(case.peer)
    values = FAMILIES[case.peer.config.model_type].write(backbone.config)
    if backbone.head:  # what an export says of it
        values |= {"projection_dim": backbone.head.classes, "num_labels": backbone.head.classes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(case.names.write(backbone.params), tmp_path / "model.safetensors", {"format": "pt"})
    again, report = peer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    batch = next(batches(backbone))
    check_same(case.runs[0][0], theirs_of(again.eval(), batch))


@pytest.mark.parametrize("variant", ["clip openai", "siglip", "siglip2"])
def test_a_tower_of_both_is_the_tower_that_transformers_reads_from_their_checkpoint(variant, make):
    peer, directory = make(variant)
    dual, model_type = checkpoints.load(str(directory)), peer.config.model_type
    batch = next(batches(dual))
    text = {name: batch.pop(name) for name in ("input_ids", "attention_mask")}
    vision = batch
    for name, inputs in {"vision": vision, "text": text}.items():
        tower = dual.tower(name)
        alone = getattr(transformers, f"{type(peer).__name__.removesuffix('Model')}{name.title()}Model")
        ours = tower(inputs, output_hidden_states=True)
        check_same(ours, theirs_of(alone.from_pretrained(directory).eval(), inputs))
        assert tower.origin.values["model_type"] == f"{model_type}_{name}_model"
        # And they are, bit by bit, what the whole has of them, whose features are those before the projection.
        whole = dual(inputs)
        np.testing.assert_array_equal(whole["features"], ours["features"])
        np.testing.assert_array_equal(whole["features"], whole[f"{name}_model_output"]["features"])
        np.testing.assert_array_equal(whole[f"{name}_model_output"]["last_hidden_state"], ours["last_hidden_state"])
        assert {"logits_per_image", "logits_per_text"}.isdisjoint(whole)


@pytest.mark.parametrize("variant", ["clip vision", "clip text", "siglip vision", "siglip text"])
def test_a_tower_under_the_prefix_and_with_the_buffers_of_older_files_is_the_same(variant, make, tmp_path):
    _, directory = make(variant)
    tower = "vision_model" if "vision" in variant else "text_model"
    tensors = load_file(directory / "model.safetensors")
    older = {f"{tower}.{name}": x for name, x in tensors.items()}
    older[f"{tower}.embeddings.position_ids"] = np.arange(9)[None]
    save_file(older, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    now, before = checkpoints.load(str(directory)).params, checkpoints.load(str(tmp_path)).params
    assert now.keys() == before.keys()
    assert all(np.array_equal(now[path], before[path]) for path in now)


@pytest.mark.parametrize("variant", ["clip openai", "siglip", "siglip2"])
def test_a_head_for_classes_on_a_checkpoint_of_both_towers_stands_on_that_of_images(variant, make, caplog):
    dual = checkpoints.load(str(make(variant)[1]))
    headed = checkpoints.load(str(make(variant)[1]), head="classification", classes=4)
    assert "freshly initialised" in caplog.text
    assert set(headed.fresh) == {"source_head/bias", "source_head/kernel"}
    assert headed.params["source_head/kernel"].shape == (24, 4)
    tower = {path: x for path, x in headed.params.items() if path not in headed.fresh}
    expected = dual.tower("vision").params
    assert tower.keys() == expected.keys()
    assert all(np.array_equal(tower[path], expected[path]) for path in tower)


def test_heads_can_be_left_out_and_a_projection_starts_where_there_is_none(make):
    plain = checkpoints.load(str(make("clip classifier")[1]), head="")
    assert plain.head is None
    assert not any(path.startswith("source_head") for path in plain.params)
    projected = checkpoints.load(str(make("clip vision")[1]), head="projection")
    assert projected.fresh == ("source_head/kernel",)
    assert projected.head.output == "image_embeds"


@pytest.mark.parametrize("variant", ["clip openai", "siglip", "siglip2"])
def test_both_towers_come_back_from_our_own_layout(variant, make, tmp_path):
    backbone = checkpoints.load(str(make(variant)[1]))
    checkpoints.save(tmp_path, backbone.model, backbone.params)
    again = checkpoints.load(str(tmp_path))
    assert again.config == backbone.config
    assert again.params.keys() == backbone.params.keys()
    for path, leaf in backbone.params.items():
        assert leaf.shape == again.params[path].shape
        assert np.array_equal(leaf, again.params[path])


@pytest.mark.parametrize("name", ["CLIP", "CLIPVision", "CLIPText", "Siglip", "SiglipVision", "SiglipText", "Siglip2"])
def test_what_a_config_leaves_unsaid_is_what_transformers_takes(name):
    config = getattr(transformers, f"{name}Config")()
    family = FAMILIES[config.model_type]
    written, expected = family.write(family.read({}, {})), config.to_dict()
    for key, value in written.items():
        theirs = expected.get(key)
        assert (value if not isinstance(value, dict) else theirs | value) == theirs, key


def test_the_older_key_of_a_tower_goes_before_the_newer_as_in_transformers():
    towers = {"text_config": {"hidden_size": 32}, "text_config_dict": {"num_hidden_layers": 3}, "vision_config": None}
    config, theirs = FAMILIES["clip"].read(towers, {}), transformers.CLIPConfig(**towers).text_config
    assert (config.text.width, config.text.depth) == (theirs.hidden_size, theirs.num_hidden_layers) == (512, 3)


def test_another_size_of_images_resizes_the_positions_of_their_tower_alone(make):
    directory = str(make("clip openai")[1])
    dual, plain = checkpoints.load(directory, image=30), checkpoints.load(directory)
    changed = {path for path, x in dual.params.items() if x.shape != plain.params[path].shape}
    assert changed == {"vision/embeddings/positions"}
    assert dual.config.inputs["pixel_values"].shape == (1, 30, 30, 2)
    with pytest.raises(InputError, match=r"image=\(20, 40\).*cannot be written as model_type 'clip_vision_model'"):
        FAMILIES["clip"].write(checkpoints.load(directory, image=(20, 40)).config)


def test_a_missing_tower_a_shapeless_text_and_a_tower_of_none_are_refused_by_name(make, tmp_path):
    _, directory = make("clip laion")
    tensors = {k: x for k, x in load_file(directory / "model.safetensors").items() if not k.startswith("text_model")}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(InputError, match=r"'text_model\.embeddings\.token_embedding\.weight' is missing"):
        checkpoints.load(str(tmp_path))
    dual = checkpoints.load(str(directory))
    with pytest.raises(InputError, match="10 tokens are too many; the model has 9 positions"):
        dual({"input_ids": np.ones((1, 10), int)})
    with pytest.raises(InputError, match="no tower 'visual'; choose one of text, vision"):
        dual.tower("visual")
    with pytest.raises(InputError, match="no tower 'vision'; there is nothing to choose from"):
        dual.tower("vision").tower("vision")
