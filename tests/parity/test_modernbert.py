"""ModernBERT is that of transformers: checkpoints in, equal outputs and gradients, and out."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jtransfer as jt
from jtransfer.checkpoints import to_huggingface
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.models import apply

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
BATCH, TOKENS, WORDS, PAD, CLASSES = 3, 11, 47, 3, 5
COMMON = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "norm_eps": 0.02,
    "local_attention": 4,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
    "reference_compile": False,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}
VARIANTS = {
    "masked_lm": ("ModernBertForMaskedLM", {}),
    "mean": ("ModernBertForSequenceClassification", {"classifier_pooling": "mean", "num_labels": CLASSES}),
    "cls": (
        "ModernBertForSequenceClassification",
        {"num_labels": CLASSES, "norm_bias": True, "classifier_bias": True, "mlp_bias": True, "attention_bias": True},
    ),
}


@pytest.fixture(scope="module", params=["masked_lm", "cls", pytest.param("mean", marks=pytest.mark.slow)])
def both(request, tmp_path_factory):
    """Peer, our backbone, and the directory that both have read."""
    architecture, options = VARIANTS[request.param]
    torch.manual_seed(0)
    peer = getattr(transformers, architecture)(transformers.ModernBertConfig(**COMMON | options)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    directory = tmp_path_factory.mktemp("modernbert")
    peer.save_pretrained(directory)
    return peer, jt.load(str(directory)), directory


def batch_of_lengths():
    ids = np.random.default_rng(0).integers(PAD + 1, WORDS, (BATCH, TOKENS))
    mask = (np.arange(TOKENS) < np.array([TOKENS, 5, 8])[:, None]).astype(int)
    return {"input_ids": np.where(mask, ids, PAD), "attention_mask": mask}


def test_outputs_and_gradients_are_those_of_transformers(both):
    peer, backbone, _ = both
    batch = batch_of_lengths()
    real = batch["attention_mask"].astype(bool)

    def loss(tree):
        outputs = apply(backbone.whole, tree, batch, output_hidden_states=True)
        logits = outputs["logits"] if outputs["logits"].ndim == 2 else outputs["logits"][real]
        return (logits**2).mean(), outputs

    (_, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(backbone.params)
    theirs = peer(**{name: torch.from_numpy(x) for name, x in batch.items()}, output_hidden_states=True)
    assert len(outputs["hidden_states"]) == len(theirs.hidden_states) == 4
    for one, other in zip(outputs["hidden_states"], theirs.hidden_states, strict=True):
        np.testing.assert_allclose(one[real], other.detach().numpy()[real], **CLOSE)
    logits = theirs.logits if theirs.logits.ndim == 2 else theirs.logits[torch.from_numpy(real)]
    mine = outputs["logits"] if outputs["logits"].ndim == 2 else outputs["logits"][real]
    np.testing.assert_allclose(mine, logits.detach().numpy(), **CLOSE)
    (logits**2).mean().backward()

    names = FAMILIES["modernbert"].names(backbone.config, backbone.origin.kind)
    found = names.write(gradients, prefix="model.")
    expected = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    peer.zero_grad()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(np.abs(gradient).max(), 1e-3)
        np.testing.assert_allclose(found[name], gradient, atol=1e-3 * scale, rtol=0, err_msg=name)


def test_what_was_read_is_written_back_to_the_bit_and_transformers_loads_an_export(both, tmp_path):
    peer, backbone, directory = both
    names = FAMILIES["modernbert"].names(backbone.config, backbone.origin.kind)
    written, file = names.write(backbone.params, "model."), load_file(directory / "model.safetensors")
    assert {name: x.tobytes() for name, x in written.items()} == {name: x.tobytes() for name, x in file.items()}
    to_huggingface(tmp_path / "out", backbone)
    again, said = type(peer).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values()), said
    batch = {name: torch.from_numpy(x) for name, x in batch_of_lengths().items()}
    torch.testing.assert_close(again.eval()(**batch).logits, peer(**batch).logits)
    assert jt.load(str(tmp_path / "out"), sharding="host").config == backbone.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types is .* expected 22"),
        ({"mlp_dropout": 0.1}, "mlp_dropout is 0.1; expected 0"),
        ({"classifier_bias": True}, "classifier_bias and norm_bias differ"),
        ({"classifier_pooling": "max"}, "classifier_pooling 'max'; "),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling .*yarn.* is not supported; expected none"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_type 'yarn' of full_attention"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
    with pytest.raises(InputError, match=message):
        FAMILIES["modernbert"].read(change, {})


def test_a_config_with_dropout_on_attention_weights_is_written_as_one_that_can_be_read():
    config = FAMILIES["modernbert"].read({}, {})
    assert (
        FAMILIES["modernbert"].read(FAMILIES["modernbert"].write(replace(config, attention_dropout=0.1)), {}) == config
    )
