"""What a backbone is called with: arrays, or what becomes one; all else is refused in one line that says what to do."""

import dataclasses
import json

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
    config = models.GPT2Config(positions=128)
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


@pytest.fixture(scope="module")
def bert():
    return made(models.BertConfig(vocabulary=19, positions=16, width=8, depth=1, heads=2, hidden=8))


OUTSIDE = [
    ("input_ids", [[1, 19]], r"input_ids\[0, 1\] is 19; the model's table has 19 rows: expected 0..18"),
    ("input_ids", [[1, 2], [-1, 2]], r"input_ids\[1, 0\] is -1; the model's table has 19 rows"),
    ("input_ids", np.array([[1, 2**32 + 5]]), r"input_ids\[0, 1\] is 4294967301; "),
    ("token_type_ids", [[0, 2]], r"token_type_ids\[0, 1\] is 2; the model's table has 2 rows"),
    ("attention_mask", [[1, 2]], "attention_mask holds 2; expected 1 for a token, 0 for padding"),
    ("attention_mask", [[-10000, 1]], "attention_mask holds -10000; "),
]


@pytest.mark.parametrize(("name", "values", "message"), OUTSIDE)
def test_a_number_without_a_row_in_its_table_is_refused_with_its_place(bert, name, values, message):
    batch = {"input_ids": np.ones(np.shape(values), int), name: values}
    with pytest.raises(jt.InputError, match=f"'mine': {message}"):
        bert(batch)


def test_positions_and_prompts_without_a_row_are_refused(gpt2):
    for positions in ([[0, 16]], [[-1, 0]]):
        with pytest.raises(jt.InputError, match=r"position_ids\[0, .\] is -?\d+; the model's table has 16 rows"):
            gpt2({"input_ids": [[1, 2]], "position_ids": positions})
    with pytest.raises(jt.InputError, match=r"input_ids\[0, 1\] is 19; "):
        gpt2.generate({"input_ids": [[1, 19]]}, max_new_tokens=2)
    with pytest.raises(jt.InputError, match=r"19 tokens are too many; the model has 16 positions"):
        gpt2.generate({"input_ids": [[1] * 10]}, max_new_tokens=10)
    with pytest.raises(jt.InputError, match=r"pad_token_id\[0\] is 19; the model's table has 19 rows"):
        gpt2.generate({"input_ids": [[1]]}, max_new_tokens=2, eos_token_id=3, pad_token_id=19)


def test_a_number_that_nobody_checked_is_nan_and_leaves_other_rows_alone(bert):
    """Inside jit no host sees the numbers; what has no row must not pass for another word."""
    batch = jax.numpy.array([[1, 2], [1, 19], [-1, 2]])
    outputs = jax.jit(lambda ids: models.apply(bert.model, bert.params, {"input_ids": ids}))(batch)
    found = np.isfinite(np.asarray(outputs["features"])).all(-1)
    assert found.tolist() == [True, False, False]
    right = bert({"input_ids": batch[:1]})["features"]
    np.testing.assert_allclose(outputs["features"][:1], right, atol=1e-6)


def told(backbone, tmp_path, **files):
    """The same with files of a checkpoint."""
    for name, values in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    origin = Origin(epath.Path(tmp_path), files.get("config", {}), "huggingface")
    return dataclasses.replace(backbone, origin=origin)


PROMPT = {"input_ids": [[1, 2, 3], [4, 5, 6]]}


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ({"eos_token_id": 7, "pad_token_id": 0}, {"eos_token_id": 7, "pad_token_id": 0}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": (7, 8), "pad_token_id": None}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "eos_token_id": ()}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.8, "top_k": 0}, {"temperature": 0.6, "top_p": 0.8}),
        ({"temperature": 0.6, "top_k": 5, "max_length": 4}, {"eos_token_id": ()}),
    ],
)
def test_tokens_follow_as_the_generation_config_says(gpt2, tmp_path, said, options):
    key = jax.random.key(3)
    options = {"eos_token_id": (), **options}
    expected = gpt2.generate(PROMPT, max_new_tokens=6, key=key, **options)
    found = told(gpt2, tmp_path, generation_config=said).generate(PROMPT, max_new_tokens=6, key=key)
    np.testing.assert_array_equal(found, expected)


def test_options_of_a_call_go_before_the_generation_config(gpt2, tmp_path):
    checkpoint = told(gpt2, tmp_path, generation_config={"do_sample": True, "top_k": 3, "eos_token_id": 2})
    with pytest.raises(jt.InputError, match="temperature=1.0 draws tokens: pass a key, or temperature=0"):
        checkpoint.generate(PROMPT, max_new_tokens=3)
    greedy = gpt2.generate(PROMPT, max_new_tokens=3, eos_token_id=())
    np.testing.assert_array_equal(checkpoint.generate(PROMPT, max_new_tokens=3, temperature=0, eos_token_id=()), greedy)


@pytest.mark.parametrize("file", ["generation_config", "config"])
@pytest.mark.parametrize(
    "said",
    [
        {"repetition_penalty": 1.2},
        {"num_beams": 4},
        {"no_repeat_ngram_size": 3},
        {"bad_words_ids": [[3]]},
        {"suppress_tokens": [4]},
        {"forced_eos_token_id": 7},
        {"min_new_tokens": 2},
        {"temperature": "0.5"},
    ],
    ids=lambda said: next(iter(said)),
)
def test_a_way_of_generating_that_is_not_done_is_refused_by_its_key(gpt2, tmp_path, file, said):
    key = next(iter(said))
    with pytest.raises(jt.InputError, match=rf"/{file}.json: {key} is "):
        told(gpt2, tmp_path, **{file: said}).generate(PROMPT, max_new_tokens=2)


def test_values_that_change_nothing_are_taken(gpt2, tmp_path):
    said = {
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "bad_words_ids": None,
        "min_length": 0,
    }
    checkpoint = told(gpt2, tmp_path, generation_config=said | {"transformers_version": "5.0", "use_cache": True})
    expected = gpt2.generate(PROMPT, max_new_tokens=3, eos_token_id=())
    np.testing.assert_array_equal(checkpoint.generate(PROMPT, max_new_tokens=3), expected)
