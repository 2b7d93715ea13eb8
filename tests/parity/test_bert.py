"""Our BERT, RoBERTa, DistilBERT and ELECTRA are those of transformers, with each head: from its files, and back."""

import json
import logging
import resource
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtransfer as jt
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.tensors import read_directory
from jtransfer.errors import InputError
from jtransfer.models import apply, build, shapes_of
from jtransfer.tree import label, partition

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
QUICKLY = {"xla_backend_optimization_level": 0}
BATCH, TOKENS, WORDS, CLASSES, LEFT_OUT = 4, 9, 67, 5, -100
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "type_vocab_size": 3,
    "layer_norm_eps": 0.03,
    "num_labels": CLASSES,
}
ROBERTA = SIZES | {"hidden_act": "silu", "pad_token_id": 4, "type_vocab_size": 1}
TYPES = {
    "bert": ("Bert", SIZES | {"hidden_act": "relu", "pad_token_id": 5}),
    "roberta": ("Roberta", ROBERTA),
    "xlm-roberta": ("XLMRoberta", ROBERTA),
    "camembert": ("Camembert", ROBERTA),
    "distilbert": (
        "DistilBert",
        {"vocab_size": WORDS, "dim": 24, "n_heads": 3, "hidden_dim": 40, "activation": "relu"}
        | {"max_position_embeddings": 20, "pad_token_id": 3, "num_labels": CLASSES},
    ),
    "electra": ("Electra", SIZES | {"hidden_act": "gelu_new", "embedding_size": 14, "pad_token_id": 2}),
}
HEADS = {
    "Model": "",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "span",
    "ForMaskedLM": "masked_lm",
}
CHOSEN = r"embeddings/word/embedding|encoder/block_0/(attention/query/kernel|mlp/down/kernel)|source_head/.*"
UNTIED = {"tie_word_embeddings": False}
CASES = [
    *[(kind, head, {}) for kind in ("bert", "roberta", "distilbert", "electra") for head in HEADS],
    ("bert", "ForMaskedLM", UNTIED),
    ("electra", "ForMaskedLM", UNTIED),
    ("bert", "ForPreTraining", {}),
    ("electra", "ForPreTraining", {"embedding_size": 24}),
    ("xlm-roberta", "ForSequenceClassification", {}),
    ("camembert", "ForMaskedLM", {}),
]


def make(model_type, head, **more):
    """A small peer with every parameter random, norms and biases included."""
    name, options = TYPES[model_type]
    options = options | ({"num_labels": 2} if head == "ForQuestionAnswering" else {}) | more
    config = getattr(transformers, f"{name}Config")(**options)
    config.num_hidden_layers = 2 if head == "Model" else 1
    torch.manual_seed(0)
    peer = getattr(transformers, name + head)(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.2)
    return peer


def batches(config):
    """Two batches of sentences of several lengths, padded at the right and at the left, with random token types."""
    rng = np.random.default_rng(1)
    types = getattr(config, "type_vocab_size", 0)
    for side in ("right", "left"):
        kept = np.arange(TOKENS) < np.array([TOKENS, 6, 3, 1])[:, None]
        kept = kept if side == "right" else kept[:, ::-1]
        words = np.setdiff1d(np.arange(WORDS), [config.pad_token_id])
        ids = np.where(kept, rng.choice(words, (BATCH, TOKENS)), config.pad_token_id)
        batch = {"input_ids": ids, "attention_mask": kept.astype(np.int64)}
        yield batch | ({"token_type_ids": rng.integers(0, types, ids.shape)} if types else {})


def answers(batch):
    """Labels for whatever is predicted: one for a sentence, one for a token (none for padding), a start and an end."""
    rng = np.random.default_rng(2)
    token = np.where(batch["attention_mask"] > 0, rng.integers(0, CLASSES, batch["input_ids"].shape), LEFT_OUT)
    return {"sentence": rng.integers(0, CLASSES, BATCH), "token": token, "start": np.zeros(BATCH, int) + 3}


def loss(cross_entropy, outputs, labels):
    """The mean cross-entropy of everything that a model predicts, or of its states where it has no head."""
    if "start_logits" in outputs:
        return cross_entropy(outputs["start_logits"], labels["start"]) + cross_entropy(outputs["end_logits"], 0)
    if "logits" in outputs:
        return cross_entropy(outputs["logits"], labels["sentence" if outputs["logits"].ndim == 2 else "token"])
    pooled = cross_entropy(outputs["pooler_output"], labels["sentence"]) if "pooler_output" in outputs else 0
    return cross_entropy(outputs["last_hidden_state"], labels["token"]) + pooled


def our_cross_entropy(logits, labels):
    labels = jnp.broadcast_to(labels, logits.shape[:-1])
    kept = labels != LEFT_OUT
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, labels, 0))
    return (each * kept).sum() / kept.sum()


def their_cross_entropy(logits, labels):
    labels = torch.from_numpy(np.broadcast_to(labels, logits.shape[:-1]).copy())
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=LEFT_OUT)


def their_outputs(peer, batch):
    """By our names, gradients on."""
    inputs = {name: torch.from_numpy(x) for name, x in batch.items()}
    outputs = dict(peer(**inputs, output_hidden_states=True).items())
    if "seq_relationship_logits" in outputs:
        outputs["next_logits"] = outputs.pop("seq_relationship_logits")
    if "ElectraForPreTraining" in type(peer).__name__:
        outputs.pop("logits")
    if "prediction_logits" in outputs:
        outputs["logits"] = outputs.pop("prediction_logits")
    return outputs | {"last_hidden_state": outputs["hidden_states"][-1]}


def case_name(case):
    model_type, head, more = case
    return model_type + head + ("".join(f"-{key}" for key in more))


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def ours(model, chosen, rest, batch, labels):
    """Gradients of the loss in the chosen leaves, and the outputs."""

    def objective(chosen):
        outputs = apply(model, chosen | rest, batch, output_hidden_states=True)
        return loss(our_cross_entropy, outputs, labels), outputs

    return jax.grad(objective, has_aux=True)(chosen)


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def both(request, tmp_path_factory):
    """A checkpoint of transformers, read by us, with outputs and gradients of both on two batches."""
    model_type, head, more = request.param
    peer, directory = make(model_type, head, **more), tmp_path_factory.mktemp("checkpoint")
    peer.save_pretrained(directory)
    backbone = jt.load(str(directory))
    names = FAMILIES[model_type].names(backbone.config, backbone.origin.kind)

    chosen, rest = partition(
        backbone.params, label(backbone.params, [(CHOSEN if head != "Model" else ".*", 1.0), (".*", 0.0)])
    )
    results = []
    for batch in batches(peer.config):
        labels = answers(batch)
        gradients, outputs = ours(backbone.whole, chosen, rest, batch, labels)
        theirs = their_outputs(peer, batch)
        peer.zero_grad()
        loss(their_cross_entropy, theirs, labels).backward()
        named = peer.named_parameters(remove_duplicate=False)
        expected = {name: x.grad.numpy() for name, x in named if x.grad is not None}
        results.append(SimpleNamespace(ours=outputs, theirs=theirs, gradients=gradients, expected=expected))
    return SimpleNamespace(
        peer=peer, directory=directory, backbone=backbone, names=names, results=results, model_type=model_type
    )


def test_the_checkpoint_fills_every_leaf_and_has_the_head_of_its_architecture(both):
    kinds = HEADS | {"ForPreTraining": "pretraining" if both.model_type == "bert" else ""}
    assert both.backbone.fresh == ()
    assert both.backbone.origin.kind == kinds[type(both.peer).__name__.removeprefix(TYPES[both.model_type][0])]


def test_every_output_is_that_of_transformers(both):
    for result in both.results:
        for name, theirs in result.theirs.items():
            if name != "hidden_states":
                np.testing.assert_allclose(result.ours[name], theirs.detach(), **CLOSE, err_msg=name)


def test_the_stream_before_the_first_block_and_after_each_is_that_of_transformers(both):
    for result in both.results:
        for ours, theirs in zip(result.ours["hidden_states"], result.theirs["hidden_states"], strict=True):
            np.testing.assert_allclose(ours, theirs.detach(), **CLOSE)


def test_features_are_the_pooled_output_or_the_first_token_where_there_is_no_pooler(both):
    for result in both.results:
        expected = result.ours.get("pooler_output", result.ours["last_hidden_state"][:, 0])
        np.testing.assert_array_equal(result.ours["features"], expected)


def test_gradients_are_those_of_transformers_in_every_weight_of_the_backbone_and_of_each_head(both):
    prefix = both.names.prefix if hasattr(both.peer, both.names.prefix.rstrip(".")) else ""
    for result in both.results:
        for path, gradient in result.gradients.items():
            name, _, layout = both.names.source(path)
            name = name if path.startswith("source_head") else prefix + name
            if name not in result.expected:  # the pooler of a head that reads tokens
                assert not np.any(gradient), path
                continue
            expected = layout.load(result.expected[name])[0]
            largest = np.abs(expected).max()
            np.testing.assert_allclose(gradient, expected, atol=1e-3 * largest + 1e-6, rtol=0, err_msg=path)
            unseen = path.endswith("key/bias") or (path == "source_head/bias" and "start_logits" in result.ours)
            assert largest > 1e-4 or unseen, f"{path}: what moves all inputs of a softmax alike has no gradient"


def test_out_and_in_again_is_exact_to_the_bit(both):
    found = {name: tensor.read() for name, tensor in read_directory(both.directory).items()}
    prefix = both.names.prefix if any(name.startswith(both.names.prefix) for name in found) else ""
    written = both.names.write(both.backbone.params, prefix)
    assert all(both.names.ignores(name) for name in found.keys() - written.keys())
    for name, x in written.items():
        assert (x.dtype, x.shape, x.tobytes()) == (found[name].dtype, found[name].shape, found[name].tobytes()), name


def test_what_is_written_is_read_by_transformers_with_the_same_outputs(both, tmp_path):
    if "ElectraForPreTraining" in type(both.peer).__name__:
        pytest.skip("written as the model that the head belongs to")
    family, backbone = FAMILIES[both.model_type], both.backbone
    classes = {"num_labels": both.peer.config.num_labels}
    architecture = next(name for name, kind in family.heads.items() if kind == backbone.origin.kind)
    values = family.write(backbone.config) | classes | {"architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    safetensors = pytest.importorskip("safetensors.numpy")
    safetensors.save_file(both.names.write(backbone.params), tmp_path / "model.safetensors", {"format": "pt"})
    again, report = type(both.peer).from_pretrained(tmp_path, output_loading_info=True)
    spare = {"cls.predictions.bias", "lm_head.bias"}  # which transformers does not read where nothing is tied
    assert set(report["missing_keys"]) <= spare and not report["unexpected_keys"] and not report["mismatched_keys"]
    batch = next(batches(both.peer.config))
    for name, theirs in their_outputs(again.eval(), batch).items():
        if name != "hidden_states":
            np.testing.assert_allclose(theirs.detach(), both.results[0].theirs[name].detach(), atol=1e-5)


@pytest.fixture
def save(tmp_path):
    """`save(model_type, head, **config)` puts a small checkpoint of transformers into a directory."""

    def save(model_type, head, **more):
        make(model_type, head, **more).save_pretrained(tmp_path)
        return tmp_path

    return save


def change(directory, tensors=dict, **values):
    """Change the tensors of a checkpoint, by a function, and the values of its config."""
    safetensors = pytest.importorskip("safetensors.numpy")
    found = {name: tensor.read() for name, tensor in read_directory(directory).items()}
    changed = {name: np.ascontiguousarray(x) for name, x in tensors(found).items()}
    (directory / "model.safetensors").unlink()
    safetensors.save_file(changed, directory / "model.safetensors", {"format": "pt"})
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | values))


def one_batch(config):
    return next(batches(config))


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_mask_and_types_are_optional_and_integers_of_any_width_do(save, model_type):
    backbone, peer = jt.load(str(save(model_type, "Model"))), make(model_type, "Model")
    ids = next(batches(peer.config))["input_ids"]
    theirs = peer(torch.from_numpy(ids)).last_hidden_state.detach()
    for kind in (np.int64, np.int32):
        np.testing.assert_allclose(backbone({"input_ids": ids.astype(kind)})["last_hidden_state"], theirs, **CLOSE)


def test_more_tokens_than_positions_are_refused(save):
    backbone = jt.load(str(save("roberta", "Model")))
    call = partial(jax.eval_shape, partial(apply, backbone.model, backbone.params))
    assert call({"input_ids": np.ones((1, 15), int)})["last_hidden_state"].shape == (1, 15, 24)
    with pytest.raises(InputError, match="input_ids have 16 tokens, the model takes 15 at most"):
        call({"input_ids": np.ones((1, 16), int)})


def test_token_types_are_refused_by_a_model_that_has_none(save):
    backbone = jt.load(str(save("distilbert", "Model")))
    ids = np.ones((1, 5), int)
    with pytest.raises(InputError, match="takes input_ids, attention_mask, not 'token_type_ids'"):
        backbone({"input_ids": ids, "token_type_ids": ids})
    with pytest.raises(InputError, match="has no token types"):
        apply(backbone.model, backbone.params, {"input_ids": ids, "token_type_ids": ids})


@pytest.mark.parametrize(
    ("model_type", "kind", "outputs"),
    [
        ("bert", "sequence", 6),
        ("bert", "token", 6),
        ("roberta", "masked_lm", WORDS),
        ("distilbert", "span", 2),
        ("electra", "sequence", 6),
    ],
)
def test_a_checkpoint_of_the_base_model_takes_a_head_which_starts_fresh_and_says_so(
    save, caplog, model_type, kind, outputs
):
    with caplog.at_level(logging.WARNING, "jtransfer"):
        classes = {"classes": outputs} if kind in ("sequence", "token") else {}
        backbone = jt.load(str(save(model_type, "Model")), head=kind, **classes)
    assert set(backbone.fresh) == {path for path in backbone.params if path.startswith("source_head/")} != set()
    assert all(path in caplog.text for path in backbone.fresh)
    assert backbone.head.classes == outputs


@pytest.mark.parametrize(
    ("model_type", "there", "asked"),
    [
        ("bert", "ForMaskedLM", "sequence"),
        ("bert", "ForSequenceClassification", "token"),
        ("distilbert", "ForSequenceClassification", "token"),
        ("roberta", "ForTokenClassification", "sequence"),
    ],
)
def test_the_head_of_another_task_is_left_out_and_the_new_one_is_fresh(save, model_type, there, asked):
    backbone = jt.load(str(save(model_type, there)), head=asked, classes=CLASSES)
    assert set(backbone.fresh) == {path for path in backbone.params if path.startswith("source_head/")} != set()
    assert backbone.classes == tuple(f"LABEL_{i}" for i in range(CLASSES))


def test_no_head_is_read_where_none_is_asked_for(save):
    backbone = jt.load(str(save("bert", "ForMaskedLM")), head="")
    assert backbone.head is None and not any(path.startswith("source_head/") for path in backbone.params)


def test_the_names_of_norms_in_checkpoints_from_tensorflow_and_buffers_of_positions_are_known(save):
    directory = save("bert", "ForMaskedLM")
    expected = jt.load(str(directory)).params
    old = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}

    def rename(tensors):
        for new, name in old.items():
            tensors = {key.replace(new, name): x for key, x in tensors.items()}
        next_sentence = {"cls.seq_relationship.weight": np.ones((2, 24), np.float32)}
        return tensors | next_sentence | {"bert.embeddings.position_ids": np.arange(20)[None]}

    change(directory, rename)
    found = jt.load(str(directory)).params
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[path], expected[path]) for path in expected)


def test_a_copy_of_the_tied_words_is_ignored_and_its_bias_is_the_one_that_is_read(save):
    directory = save("bert", "ForMaskedLM")
    bias = np.arange(WORDS, dtype=np.float32)

    def copy(tensors):
        words = tensors["bert.embeddings.word_embeddings.weight"]
        return tensors | {"cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": bias}

    change(directory, copy)
    backbone, peer = jt.load(str(directory)), transformers.BertForMaskedLM.from_pretrained(directory).eval()
    batch = one_batch(peer.config)
    np.testing.assert_array_equal(backbone.params["source_head/bias"], bias)
    np.testing.assert_allclose(backbone(batch)["logits"], their_outputs(peer, batch)["logits"].detach(), **CLOSE)


@pytest.mark.parametrize("model_type", ["bert", "distilbert"])
def test_an_output_that_is_not_the_words_is_read_although_the_config_ties_them(save, model_type):
    directory = save(model_type, "ForMaskedLM", **UNTIED)
    change(directory, tie_word_embeddings=True)
    backbone = jt.load(str(directory))
    peer = getattr(transformers, f"{TYPES[model_type][0]}ForMaskedLM").from_pretrained(directory).eval()
    batch = one_batch(peer.config)
    assert not backbone.head.tied and not backbone.config.tied and not backbone.fresh
    np.testing.assert_allclose(backbone(batch)["logits"], their_outputs(peer, batch)["logits"].detach(), **CLOSE)


@pytest.mark.parametrize("kind", ["", "sequence"])
def test_an_output_that_is_not_the_words_is_nothing_to_another_head(save, kind):
    directory = save("bert", "ForMaskedLM", **UNTIED)
    change(directory, tie_word_embeddings=True)
    backbone = jt.load(str(directory), head=kind)
    assert all(path.startswith("source_head/") for path in backbone.fresh) and backbone.config.tied


@pytest.mark.parametrize("model_type", ["roberta", "distilbert"])
def test_an_untied_output_is_read_and_written_with_its_own_bias(save, model_type):
    directory = save(model_type, "ForMaskedLM", **UNTIED)
    found, backbone = read_directory(directory), jt.load(str(directory))
    written = FAMILIES[model_type].names(backbone.config, "masked_lm").write(backbone.params)
    assert backbone.fresh == () and found.keys() - written.keys() <= {"lm_head.bias"}
    assert all(np.array_equal(x, found[name].read()) for name, x in written.items())


def test_an_untied_output_without_a_bias_of_its_own_takes_the_one_beside_it(save):
    directory = save("bert", "ForMaskedLM", **UNTIED)
    bias = read_directory(directory)["cls.predictions.bias"].read().copy()
    change(directory, lambda tensors: {n: x for n, x in tensors.items() if n != "cls.predictions.decoder.bias"})
    np.testing.assert_array_equal(jt.load(str(directory)).params["source_head/out/bias"], bias)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"is_decoder": True}, "is_decoder True is not supported; expected False"),
        ({"add_cross_attention": True}, "add_cross_attention True is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
        ({"hidden_act": "glue"}, "unknown activation 'glue'; did you mean 'gelu'"),
        ({"num_attention_heads": 5}, "width 24 is not a multiple of heads 5"),
        (
            {"vocab_size": 10**9},
            r"word_embeddings.weight' has shape \[67, 24\].*expected \[1000000000, 24\]",
        ),
        ({"vocab_size": -1}, "vocab_size is -1; expected a whole number from 1"),
        ({"vocab_size": "67"}, "config.json: vocab_size is '67'; expected a whole number"),
        ({"hidden_size": 3 * 10**8}, "has shape"),
        ({"intermediate_size": 10**12}, "intermediate_size is 1000000000000; expected"),
        ({"max_position_embeddings": 10**9}, r"expected \[1000000000, 24\]"),
        ({"type_vocab_size": 10**9}, r"expected \[1000000000, 24\]"),
        ({"num_hidden_layers": 10**9}, "claims 1000000000 blocks"),
    ],
)
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM"])
def test_settings_that_are_not_supported_or_do_not_fit_are_named_and_nothing_is_allocated(save, head, values, message):
    directory = save("bert", head)
    change(directory, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message) as error:
        jt.load(str(directory))
    assert "\n" not in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "100 MB more than before"


def test_a_classifier_of_sequences_needs_the_pooler_that_it_was_trained_with(save):
    directory = save("bert", "ForSequenceClassification")
    change(directory, lambda tensors: {name: x for name, x in tensors.items() if "pooler" not in name})
    with pytest.raises(InputError, match="'pooler.dense.weight' is missing for pooler/kernel"):
        jt.load(str(directory))


@pytest.mark.parametrize(
    ("model_type", "options", "message"),
    [
        ("bert", {"types": 0}, "Hugging Face's bert has token types; this model has none"),
        ("bert", {"shifted": True}, "Hugging Face's bert has shifted False; this model has True"),
        ("bert", {"embedding": 16}, "Hugging Face's bert has embedding 0; this model has 16"),
        ("roberta", {}, "Hugging Face's roberta has shifted True; this model has False"),
        ("distilbert", {"types": 0, "pooler": False}, "has epsilon 1e-12; this model has 0.001"),
        ("electra", {}, "Hugging Face's electra has pooler False; this model has True"),
    ],
)
def test_a_model_that_a_type_cannot_express_is_not_written_as_one(model_type, options, message):
    config = build("bert", width=8, heads=2, epsilon=1e-3, **options).config
    with pytest.raises(InputError, match=message):
        FAMILIES[model_type].write(config)


def test_dropout_acts_on_embeddings_branches_and_attention_in_training_only():
    sizes = {"vocabulary": 11, "positions": 32, "width": 64, "depth": 1, "heads": 2, "hidden": 8}
    batch = {"input_ids": np.ones((4, 32), int)}

    shapes = shapes_of(build("bert", **sizes), build("bert", **sizes).config.inputs)
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}

    @partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICKLY)
    def states(model, train):
        rngs = {"dropout": jax.random.key(1)}
        return apply(model, params, batch, train=train, output_hidden_states=True, rngs=rngs)["hidden_states"]

    trained = states(build("bert", **sizes, dropout=0.25), True)
    attending = states(build("bert", **sizes, attention_dropout=0.25), True)
    evaluated = states(build("bert", **sizes, dropout=0.25, attention_dropout=0.25), False)
    assert np.mean(trained[0] == 0) == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(attending[0], evaluated[0])
    assert np.abs(attending[1] - evaluated[1]).max() > 0.1


def test_bert_base_at_full_size_is_that_of_transformers(tmp_path):
    torch.manual_seed(0)
    peer = transformers.BertModel(transformers.BertConfig()).eval()
    peer.save_pretrained(tmp_path)
    backbone = jt.load(str(tmp_path))
    ids = np.random.default_rng(0).integers(0, 30522, (2, 16))
    mask = (np.arange(16) < np.array([[16], [9]])).astype(int)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    ours = backbone({"input_ids": ids, "attention_mask": mask})
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(ours[name], theirs[name], **CLOSE)
