"""GPT-2 is that of transformers: its checkpoints in, the same outputs and gradients, and the same bytes out."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer.checkpoints import to_huggingface
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import apply

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
BATCH, TOKENS, VOCABULARY, PAD, CLASSES = 4, 9, 47, 3, 5
COMMON = {
    "vocab_size": VOCABULARY,
    "n_positions": 13,
    "n_embd": 20,
    "n_head": 5,
    "n_layer": 3,
    "layer_norm_epsilon": 0.02,
    "resid_pdrop": 0.2,
    "embd_pdrop": 0.3,
    "attn_pdrop": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS = {
    "lm": ("GPT2LMHeadModel", {"n_inner": 36}),
    "lm untied, scores scaled by depth": (
        "GPT2LMHeadModel",
        {
            "tie_word_embeddings": False,
            "activation_function": "relu",
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "eos_token_id": [2, 5],
        },
    ),
    "sequence, scores unscaled": (
        "GPT2ForSequenceClassification",
        {"num_labels": CLASSES, "pad_token_id": PAD, "scale_attn_weights": False, "activation_function": "gelu"},
    ),
    "base": ("GPT2Model", {"n_inner": 28}),
}


def make(architecture, **options):
    """A peer with every parameter random, norms and biases included."""
    torch.manual_seed(0)
    peer = getattr(transformers, architecture)(transformers.GPT2Config(**COMMON | options)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.normal_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0, 0.3)
    return peer


def write(directory, tensors, **values):
    """A checkpoint without transformers' help."""
    directory.mkdir()
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "gpt2"} | values))
    return directory


def of_names(backbone):
    return FAMILIES["gpt2"].names(backbone.config, backbone.origin.kind)


@pytest.fixture(scope="module", params=VARIANTS)
def both(request, tmp_path_factory):
    """Peer, our backbone, and the directory that both have read."""
    architecture, options = VARIANTS[request.param]
    peer, directory = make(architecture, **options), tmp_path_factory.mktemp("gpt2")
    peer.save_pretrained(directory)
    return peer, jt.load(str(directory)), directory


def padded(side):
    """Tokens (none of which is the one that pads) of several lengths, with their mask."""
    ids = np.random.default_rng(len(side)).integers(PAD + 1, VOCABULARY, (BATCH, TOKENS))
    lengths = np.array([TOKENS, 5, 1, 7] if side != "none" else [TOKENS] * BATCH)
    mask = (np.arange(TOKENS) < lengths[:, None]).astype(int)
    mask = mask[:, ::-1].copy() if side == "left" else mask
    return {"input_ids": np.where(mask, ids, PAD), "attention_mask": mask}


def targets(architecture, batch):
    """Of the mean cross-entropy: the class of each text, or each token that follows one that is no padding."""
    if architecture == "GPT2ForSequenceClassification":
        return np.array([4, 0, 2, 2]), np.ones(BATCH)
    mask = batch["attention_mask"]
    return batch["input_ids"][:, 1:], mask[:, 1:] * mask[:, :-1]


@pytest.fixture(scope="module")
def ours(both):
    """`run(batch, labels, weights) -> outputs, gradients`; the latter None without a head."""
    _, backbone, _ = both

    def loss(tree, batch, labels, weights):
        outputs = apply(backbone.whole, tree, batch, output_hidden_states=True)
        if backbone.head is None:
            return 0.0, outputs
        logits = outputs["logits"] if labels.ndim == 1 else outputs["logits"][:, :-1]
        likelihoods = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)[..., 0]
        return -(likelihoods * weights).sum() / weights.sum(), outputs

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def of_batch(batch, labels, weights):
        (_, outputs), gradients = run(backbone.params, batch, labels, weights)
        return outputs, gradients

    return of_batch


@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_outputs_and_gradients_are_those_of_transformers(both, ours, side):
    peer, backbone, _ = both
    batch = padded(side)
    labels, weights = targets(type(peer).__name__, batch)
    outputs, gradients = ours(batch, labels, weights)

    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    theirs = peer(**tensors, output_hidden_states=True)
    real = batch["attention_mask"].astype(bool)
    assert len(outputs["hidden_states"]) == len(theirs.hidden_states) == COMMON["n_layer"] + 1
    for one, other in zip(outputs["hidden_states"], theirs.hidden_states, strict=True):
        np.testing.assert_allclose(one[real], other.detach().numpy()[real], **CLOSE)
    states = theirs.hidden_states[-1].detach().numpy()  # transformers has them after ln_f
    np.testing.assert_allclose(outputs["last_hidden_state"][real], states[real], **CLOSE)
    last = TOKENS - 1 - np.argmax(real[:, ::-1], axis=1)
    np.testing.assert_allclose(outputs["features"], states[np.arange(BATCH), last], **CLOSE)
    if backbone.head is None:
        return

    logits, everything = theirs.logits, labels.ndim == 1
    shown = np.ones(BATCH, bool) if everything else real
    np.testing.assert_allclose(outputs["logits"][shown], logits.detach().numpy()[shown], **CLOSE)
    peer.zero_grad()
    logits = logits if everything else logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.movedim(-1, 1), torch.from_numpy(labels), reduction="none")
    ((losses * torch.from_numpy(weights)).sum() / weights.sum()).backward()
    found = of_names(backbone).write(gradients, prefix="transformer.")
    expected = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert np.abs(gradient).max() > 1e-4, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-4, rtol=0, err_msg=name)


def test_without_a_mask_and_with_positions_of_ones_own_the_states_are_those_of_transformers(both):
    peer, backbone, _ = both
    ids, positions = padded("none")["input_ids"], np.array([[3, 0, 1, 1, 12, 4, 5, 6, 7]])
    for batch in ({"input_ids": ids}, {"input_ids": ids, "position_ids": positions}):
        theirs = peer.base_model(**{name: torch.from_numpy(x) for name, x in batch.items()}).last_hidden_state
        np.testing.assert_allclose(backbone(batch)["last_hidden_state"], theirs.detach().numpy(), **CLOSE)


def test_what_was_read_is_written_back_to_the_bit(both):
    _, backbone, directory = both
    prefix = "" if backbone.head is None else "transformer."
    written, file = of_names(backbone).write(backbone.params, prefix), load_file(directory / "model.safetensors")
    assert {name: (x.shape, x.tobytes()) for name, x in written.items()} == {
        name: (x.shape, x.tobytes()) for name, x in file.items()
    }


def test_transformers_loads_what_we_write_and_computes_the_same(both, tmp_path):
    peer, backbone, _ = both
    values = FAMILIES["gpt2"].write(backbone.config)
    labels = {"id2label": dict(enumerate(backbone.classes))} if backbone.origin.kind == "sequence" else {}
    architecture = type(peer).__name__
    tensors = of_names(backbone).write(backbone.params)
    directory = write(tmp_path / "out", tensors, **values | labels, architectures=[architecture])
    again, said = type(peer).from_pretrained(directory, output_loading_info=True)
    assert not any(said[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = peer.config.to_dict()
    found = {name: value for name, value in again.config.to_dict().items() if name in values}
    inner = expected["n_inner"] or 4 * COMMON["n_embd"]
    assert found == {name: expected[name] for name in values} | {"n_inner": inner}
    batch = {name: torch.from_numpy(x) for name, x in padded("right").items()}
    for one, other in zip(again(**batch).to_tuple()[:1], peer(**batch).to_tuple()[:1], strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(scope="module")
def plain():
    """Tensors of a tied LM by the names that its files have on the hub, and the values of its config."""
    peer = make("GPT2LMHeadModel")
    tensors = {name.removeprefix("transformer."): x.detach().numpy() for name, x in peer.named_parameters()}
    return tensors, COMMON | {"architectures": ["GPT2LMHeadModel"]}


def test_the_files_of_the_hub_load_without_prefix_and_with_their_buffers(plain, tmp_path):
    tensors, values = plain
    buffers = {"h.0.attn.bias": np.ones((1, 1, 13, 13), np.uint8), "h.0.attn.masked_bias": np.float32([-1e4])}
    copy = {"lm_head.weight": tensors["wte.weight"]}
    backbone = jt.load(str(write(tmp_path / "hub", tensors | buffers | copy, **values)))
    assert backbone.head.tied and not backbone.fresh
    assert of_names(backbone).write(backbone.params).keys() == tensors.keys()


@pytest.mark.parametrize("said", [{"tie_word_embeddings": True}, {}])
def test_an_output_that_is_not_the_words_is_read_although_the_config_ties_them(plain, tmp_path, said):
    tensors, values = plain
    own = np.random.default_rng(0).normal(size=(VOCABULARY, 20)).astype(np.float32)
    prefixed = {f"transformer.{name}": x for name, x in tensors.items()} | {"lm_head.weight": own}
    directory = write(tmp_path / "own", prefixed, **values | said)
    backbone, peer = jt.load(str(directory)), transformers.GPT2LMHeadModel.from_pretrained(directory).eval()
    assert not backbone.head.tied and not backbone.fresh
    ids = padded("none")["input_ids"]
    theirs = peer(torch.from_numpy(ids)).logits.detach()
    np.testing.assert_allclose(backbone({"input_ids": ids})["logits"], theirs, **CLOSE)
    to_huggingface(tmp_path / "out", backbone)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "out").eval()
    assert again.config.tie_word_embeddings is False
    torch.testing.assert_close(again(torch.from_numpy(ids)).logits.detach(), theirs)
    assert jt.load(str(directory), head="").config.tied, "the output is not looked at where no head needs it"


def test_a_kernel_of_conv1d_is_ours_as_it_lies(plain, tmp_path):
    tensors, values = plain
    params = jt.load(str(write(tmp_path / "hub", tensors, **values))).params
    for theirs, path in (("h.1.attn.c_attn", "attention/qkv"), ("h.1.mlp.c_proj", "mlp/down")):
        np.testing.assert_array_equal(params[f"encoder/block_1/{path}/kernel"], tensors[f"{theirs}.weight"])


@pytest.mark.parametrize("lm", [{}, {"lm_head.weight": np.ones((VOCABULARY, 20), np.float32)}])
def test_a_new_head_for_sequences_starts_at_zero_and_is_named_in_a_warning(plain, tmp_path, caplog, lm):
    tensors, values = plain
    directory = write(tmp_path / "hub", tensors | lm, **values, tie_word_embeddings=not lm)
    with caplog.at_level(logging.WARNING, "jtransfer"):
        backbone = jt.load(str(directory), head="sequence", classes=3)
    assert backbone.fresh == ("source_head/kernel",) and "source_head/kernel" in caplog.text
    assert backbone.params["source_head/kernel"].shape == (20, 3) and not backbone.params["source_head/kernel"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel is not supported; expected one of GPT2LM"),
        ({"add_cross_attention": True}, "add_cross_attention=true is not supported"),
        ({"activation_function": "gelu_old"}, "unknown activation 'gelu_old'; did you mean 'gelu'"),
        ({"n_head": 3}, "width 20 is not a multiple of heads 3"),
        ({"n_positions": 14}, r"'wpe.weight' has shape \[13, 20\] for embeddings/position/embedding"),
        ({"n_layer": 2}, "'h.2.attn.c_attn.bias' belongs to no leaf"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(plain, tmp_path, change, message):
    tensors, values = plain
    with pytest.raises(InputError, match=message):
        jt.load(str(write(tmp_path / "hub", tensors, **values | change)))


def test_more_tokens_than_positions_are_refused(plain, tmp_path):
    tensors, values = plain
    backbone = jt.load(str(write(tmp_path / "hub", tensors, **values)))
    with pytest.raises(InputError, match="14 tokens are too many; the model has 13 positions"):
        backbone({"input_ids": np.ones((1, 14), int)})
