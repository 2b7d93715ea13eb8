"""What a backbone is called with: arrays, or what becomes one; all else is refused in one line that says what to do."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

import jtransfer as jt
from jtransfer import models
from jtransfer.checkpoints.backbone import Backbone
from jtransfer.checkpoints.layouts import Origin
from jtransfer.data import preprocess
from jtransfer.models import Head, Headed, complete

IMAGES = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
IDS = np.random.default_rng(1).integers(3, 19, (2, 5))


def made(config, head=None):
    """A backbone as initialised, called "mine"."""
    model = models.of_config(config)
    whole = Headed(model, head) if head else model
    tree = jax.jit(lambda key: complete(whole, key, {}, config.inputs))(jax.random.key(0))
    state = {path: leaf for path, leaf in tree.items() if path.startswith(models.STATISTICS)}
    return Backbone("mine", model, {p: x for p, x in tree.items() if p not in state}, head=head, state=state)


@pytest.fixture(scope="module")
def vit():
    return made(models.ViTConfig(image=(8, 8), channels=3, patch=4, width=8, depth=1, heads=2, hidden=8))


@pytest.fixture(scope="module")
def resnet():
    return made(models.ResNetConfig(image=(8, 8), stem=4, widths=(4,), depths=(1,), block="basic"))


@pytest.fixture(scope="module")
def gpt2():
    config = models.GPT2Config(vocabulary=19, positions=16, width=8, depth=1, heads=2, hidden=8)
    return made(config, Head(19, "last_hidden_state", bias=False))


@pytest.fixture(params=["vit", "resnet"])
def of_images(request):
    return request.getfixturevalue(request.param)


def refused(call, *words):
    """The call raises one line with these words."""
    with pytest.raises(jt.InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("pixels", "advice"),
    [
        (IMAGES.transpose(0, 3, 1, 2), "; channels come last: x.transpose(0, 2, 3, 1)"),
        (IMAGES[0], "; the batch axis is missing: x[None]"),
        (
            IMAGES[0].transpose(2, 0, 1),
            "; channels come last, and the batch axis is missing: x.transpose(1, 2, 0)[None]",
        ),
        (IMAGES[..., :1], "have shape [2, 8, 8, 1]; expected [batch, height, width, 3]"),
    ],
)
def test_images_with_other_axes_are_refused_with_what_puts_them_right(of_images, pixels, advice):
    refused(lambda: of_images({"pixel_values": pixels}), "'mine': pixel_values have shape", advice)


def test_only_images_of_another_size_are_advised_to_resize_the_model(vit):
    refused(lambda: vit({"pixel_values": IMAGES[:, :4]}), "image=(4, 8)")
    with pytest.raises(jt.InputError, match=r"the model takes 8x8x3; the axes are \[batch, height, width, channels\]"):
        models.apply(vit.model, vit.params, IMAGES.transpose(0, 3, 1, 2))


def test_lists_and_tensors_of_torch_are_taken_as_arrays(vit, gpt2):
    torch = pytest.importorskip("torch")
    expected = vit({"pixel_values": IMAGES})["features"]
    for pixels in (IMAGES.tolist(), torch.from_numpy(IMAGES)):
        np.testing.assert_allclose(vit({"pixel_values": pixels})["features"], expected, atol=1e-6)
    expected = gpt2({"input_ids": IDS})["logits"]
    for ids in (IDS.tolist(), torch.from_numpy(IDS)):
        np.testing.assert_allclose(gpt2({"input_ids": ids, "attention_mask": None})["logits"], expected, atol=1e-6)
    np.testing.assert_array_equal(
        gpt2.generate({"input_ids": IDS.tolist()}, max_new_tokens=2),
        gpt2.generate({"input_ids": IDS}, max_new_tokens=2),
    )


def test_a_backbone_can_be_called_under_a_transformation(vit):
    inside = jax.jit(lambda x: vit({"pixel_values": x})["features"])(IMAGES)
    np.testing.assert_allclose(inside, vit({"pixel_values": IMAGES})["features"], atol=1e-6)


def test_batches_that_are_none_are_refused(vit, gpt2):
    refused(lambda: vit(IMAGES), "'mine' takes a dict with pixel_values, not a bare ndarray")
    refused(lambda: vit({}), "'mine' needs pixel_values; the batch has nothing")
    refused(lambda: gpt2({"attention_mask": IDS}), "needs input_ids; the batch has attention_mask")
    refused(lambda: gpt2({"input_ids": IDS.astype(np.float32)}), "input_ids are of float32; expected integers")
    refused(
        lambda: gpt2({"input_ids": IDS[0]}), "input_ids have shape [5]; expected [batch, tokens]; the batch axis is"
    )
    refused(lambda: gpt2({"input_ids": [[1, 2], [3]]}), "input_ids are a list that does not become an array")
    refused(lambda: vit({"pixel_values": [["red"]]}), "pixel_values are of <U3; expected numbers")
    refused(lambda: gpt2.generate(IDS, max_new_tokens=1), "takes a dict with input_ids")
    refused(lambda: gpt2.generate({}, max_new_tokens=1), "needs input_ids")


def test_a_dual_encoder_needs_images_or_texts():
    tower = {"width": 8, "depth": 1, "heads": 2, "hidden": 8}
    text = models.CLIPTextConfig(vocabulary=19, positions=8, **tower)
    vision = models.ViTConfig(image=(8, 8), channels=3, patch=4, **tower)
    backbone = made(models.CLIPConfig(vision=vision, text=text, projection=4))
    refused(lambda: backbone({}), "neither pixel_values nor input_ids are given")
    assert "image_embeds" in backbone({"pixel_values": IMAGES})


def test_unknown_options_are_refused_with_the_nearest(vit, gpt2):
    pixels = {"pixel_values": IMAGES}
    refused(lambda: vit(pixels, output_hidden_state=True), "no option 'output_hidden_state'", "'output_hidden_states'?")
    refused(lambda: vit(pixels, output_attentions=True), "'mine' has no option 'output_attentions'")
    refused(lambda: vit(pixels, train=True), "evaluation mode", "methods.adapt")
    refused(lambda: vit(pixels, logits_to_keep=1), "no option 'logits_to_keep'")
    assert "hidden_states" in vit(pixels, output_hidden_states=True, train=False)
    assert gpt2({"input_ids": IDS}, logits_to_keep=1)["logits"].shape[1] == 1


def test_generate_refuses_options_that_it_does_not_have_and_needs_a_number_of_tokens(gpt2):
    prompts = {"input_ids": IDS}
    refused(lambda: gpt2.generate(prompts), "generate needs max_new_tokens=")
    refused(lambda: gpt2.generate(prompts, max_new_tokens="5"), "a whole number; found '5'")
    short = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)[:, 1:]}
    refused(lambda: gpt2(short), "expected one shape, found input_ids")
    refused(
        lambda: gpt2.generate(prompts, max_new_token=3), "no option 'max_new_token'; did you mean 'max_new_tokens'?"
    )
    refused(lambda: gpt2.generate(prompts, max_new_tokens=3, do_sample=True), "no option 'do_sample'", "temperature")
    padded = {"input_ids": IDS, "attention_mask": [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]}
    refused(
        lambda: gpt2.generate(padded, max_new_tokens=1), "padded on the right; expected preprocess(texts, side='left')"
    )


def test_padding_takes_no_room_from_new_tokens(gpt2):
    wide = np.zeros((2, 16), int)
    wide[:, -5:] = IDS
    mask = (np.arange(16) >= [[11], [13]]).astype(int)
    found = gpt2.generate({"input_ids": wide, "attention_mask": mask}, max_new_tokens=8)
    assert found.shape == (2, 5 + 8)
    np.testing.assert_array_equal(
        found, gpt2.generate({"input_ids": IDS, "attention_mask": mask[:, -5:]}, max_new_tokens=8)
    )


TEXTS = ["a photo of a dog", "  Two  spaces, and\nlines ", "Résumé don't , it 's <|endoftext|> 🙂 東京", ""]


@pytest.fixture(scope="module", params=["vocab.json", "tokenizer.json"])
def tokenizers_of_gpt2(request, tmp_path_factory):
    """Ours and that of transformers, of a tiny vocabulary."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import ByteLevelBPETokenizer

    directory = tmp_path_factory.mktemp("gpt2")
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(TEXTS[:2], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    trained.save_model(str(directory))
    (directory / "config.json").write_text('{"model_type": "gpt2"}')
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    if request.param == "tokenizer.json":
        theirs.save_pretrained(directory)
    config = SimpleNamespace(inputs=dict.fromkeys(("input_ids", "attention_mask")), longest=128)
    return preprocess.of("mine", Origin(epath.Path(directory), {"model_type": "gpt2"}, "huggingface"), config), theirs


def test_ids_become_the_texts_that_transformers_makes_of_them(tokenizers_of_gpt2):
    ours, theirs = tokenizers_of_gpt2
    ids = ours(TEXTS, side="left")["input_ids"]
    expected = theirs.batch_decode(ids, skip_special_tokens=True)
    assert ours.decode(ids) == ours.decode(jax.numpy.asarray(ids)) == ours.decode(ids.tolist()) == expected
    assert expected[:2] == TEXTS[:2], "special tokens are left out, spaces are kept"
    assert ours.decode([ids[0], ids[1, -3:].tolist(), []]) == theirs.batch_decode([ids[0], ids[1, -3:], []], True)


@pytest.mark.parametrize("ids", [[1, 2], 3, [[0.5]], [[-1]], ["a"], [[[1]]]])
def test_what_are_no_rows_of_ids_is_refused(tokenizers_of_gpt2, ids):
    refused(lambda: tokenizers_of_gpt2[0].decode(ids), "ids: expected")
