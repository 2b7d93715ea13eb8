"""Finetuning by masked words is that of transformers: loss, every gradient, and the model that comes out of it."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtransfer as jt
from jtransfer import checkpoints, methods, objectives
from jtransfer.checkpoints import Adapter, to_huggingface
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.checkpoints.headed import headed
from jtransfer.errors import InputError
from jtransfer.models import Head
from jtransfer.objectives import make_loss
from jtransfer.train.state import TrainState
from jtransfer.train.step import make_step
from jtransfer.tree import merge, partition, prefixed, select

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS, TOKENS, PAD, MASK = 61, 12, 0, 4
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
    "pad_token_id": PAD,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
KINDS = {
    "bert": ("Bert", {}),
    "bert untied": ("Bert", {"tie_word_embeddings": False}),
    "electra": ("Electra", {"embedding_size": 14}),
}
TOKENIZER = SimpleNamespace(size=WORDS, mask=MASK, special=(PAD, 1, 2, MASK), where="")
MASKED = objectives.masked_lm(share=0.4, tokenizer=TOKENIZER)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """A small masked language model of transformers with every parameter random, and its directory."""
    name, more = KINDS[request.param]
    directory = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    peer = getattr(transformers, f"{name}ForMaskedLM")(getattr(transformers, f"{name}Config")(**SIZES | more))
    with torch.no_grad():
        for path, parameter in peer.named_parameters():
            parameter.normal_(1.0 if "norm" in path.lower() and path.endswith("weight") else 0.0, 0.2)
    peer.save_pretrained(directory)
    return peer.eval(), str(directory)


@pytest.fixture(scope="module")
def batch():
    """Five texts of several lengths."""
    rng = np.random.default_rng(0)
    kept = np.arange(TOKENS) < np.array([TOKENS, 9, 5, 3, 7])[:, None]
    ids = np.where(kept, rng.integers(5, WORDS, kept.shape), PAD)
    return {"inputs": {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(kept, int)}}


def of_theirs(peer, asked):
    """Loss, and gradients by name, of what the model was asked."""
    inputs = {name: torch.tensor(np.asarray(x)) for name, x in asked["inputs"].items()}
    peer.zero_grad()
    loss = peer(**inputs, labels=torch.tensor(np.asarray(asked["labels"]), dtype=torch.long)).loss
    loss.backward()
    named = peer.named_parameters(remove_duplicate=False)
    return loss.item(), {name: x.grad.numpy() for name, x in named if x.grad is not None}


def test_loss_and_every_gradient_are_those_of_transformers_at_the_same_masks(checkpoint, batch):
    peer, directory = checkpoint
    backbone = jt.load(directory)
    model, params, head = headed(backbone, MASKED)
    assert head == backbone.head and not any(path.startswith("source_head/") for path in params)
    asked = MASKED.targets(jax.random.key(3), batch)
    given = {"inputs": asked["inputs"], "labels": asked["labels"]}
    fixed = objectives.Objective(MASKED.score)  # the masks are given
    loss = make_loss(model, fixed)
    value, gradients = jax.jit(jax.value_and_grad(lambda p: loss(p, {}, given, jax.random.key(0))[0]))(params)
    expected, theirs = of_theirs(peer, asked)
    assert abs(value - expected) < 1e-5
    names = FAMILIES[peer.config.model_type].names(backbone.config, "masked_lm")
    of_ours = prefixed(select(gradients, "head/"), "source_head/")
    of_ours |= {path: x for path, x in gradients.items() if not path.startswith("head/")}
    written = names.write({path: np.asarray(x) for path, x in of_ours.items() if not path.startswith("pooler/")})
    assert written.keys() >= {name for name, x in peer.named_parameters() if x.grad is not None}
    for name, gradient in written.items():
        np.testing.assert_allclose(gradient, theirs[name], atol=1e-6, err_msg=name)


def test_what_was_trained_is_saved_loaded_exported_and_predicts_the_same_in_transformers(checkpoint, batch, tmp_path):
    _, directory = checkpoint
    backbone = jt.load(directory)
    model, params, head = headed(backbone, MASKED)
    adapted = methods.adapt(methods.parse("finetune"), model, params, backbone.config.inputs)
    trainable, frozen = partition(params, adapted.rates)
    step = jax.jit(make_step(make_loss(adapted.model, MASKED), optax.adam(1e-2)))
    state = TrainState.create(jax.random.key(0), trainable, {}, optax.adam(1e-2))
    for _ in range(3):
        state, _ = step(state, frozen, batch)
    tree = merge(state.trainable, frozen)
    assert np.any(tree["head/dense/kernel"] != params["head/dense/kernel"])
    checkpoints.save(tmp_path / "own", backbone.model, tree, head=head)
    again = jt.load(str(tmp_path / "own"))
    to_huggingface(tmp_path / "theirs", again)
    peer, told = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    unused = {"cls.predictions.bias"} if not head.tied else set()  # which transformers makes and never reads
    assert set(told["missing_keys"]) <= unused and not told["unexpected_keys"]
    inputs = {name: torch.tensor(np.asarray(x)) for name, x in batch["inputs"].items()}
    kept = np.asarray(batch["inputs"]["attention_mask"]) > 0
    theirs = peer.eval()(**inputs).logits.detach().numpy()
    np.testing.assert_allclose(np.asarray(again(batch["inputs"])["logits"])[kept], theirs[kept], atol=1e-5)
    assert jt.load(str(tmp_path / "theirs")).head == again.head == head


def test_loss_and_every_gradient_with_the_next_sentence_are_those_of_bert_for_pretraining(batch, tmp_path):
    torch.manual_seed(0)
    peer = transformers.BertForPreTraining(transformers.BertConfig(**SIZES)).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.0, 0.2)
    peer.save_pretrained(tmp_path / "theirs")
    objective = objectives.masked_lm(share=0.4, next_sentence=True, tokenizer=TOKENIZER)
    backbone = jt.load(str(tmp_path / "theirs"))
    model, params, head = headed(backbone, objective)
    assert head == backbone.head and head.kind == "pretraining"
    types = (jnp.arange(TOKENS) >= 2).astype(int) * batch["inputs"]["attention_mask"]
    labels = jnp.array([0, 1, 1, 0, 1])
    whole = {"inputs": batch["inputs"] | {"token_type_ids": types}, "labels": labels}
    key = jax.random.key(3)
    asked = objective.targets(jax.random.split(key)[0], whole)  # as `make_loss` asks
    loss = make_loss(model, objective)
    value, gradients = jax.jit(jax.value_and_grad(lambda p: loss(p, {}, whole, key)[0]))(params)
    inputs = {name: torch.tensor(np.asarray(x)) for name, x in asked["inputs"].items()}
    words, follows = (torch.tensor(np.asarray(x), dtype=torch.long) for x in (asked["labels"], labels))
    theirs = peer(**inputs, labels=words, next_sentence_label=follows)
    theirs.loss.backward()
    assert abs(value - theirs.loss.item()) < 1e-5
    names = FAMILIES["bert"].names(backbone.config, "pretraining")
    of_ours = {path.replace("head/", "source_head/", 1): np.asarray(x) for path, x in gradients.items()}
    written, parameters = names.write(of_ours, names.prefix), dict(peer.named_parameters())
    assert written.keys() == parameters.keys()
    for name, gradient in written.items():
        np.testing.assert_allclose(gradient, parameters[name].grad, atol=2e-6, err_msg=name)
    measured = objective.measure({name: jnp.asarray(theirs[of].detach()) for name, of in OUTPUTS.items()}, asked)
    assert measured["next_accuracy"].tolist() == (theirs.seq_relationship_logits.argmax(-1) == follows).tolist()
    to_huggingface(tmp_path / "again", backbone)
    again, told = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert type(again) is type(peer) and not told["missing_keys"] and not told["unexpected_keys"]
    # A checkpoint of one kind begins a training of the other, with no more than the one layer anew.
    _, kept, one = headed(backbone, MASKED)
    assert one.kind == "masked_lm" and kept.keys() == {path for path in params if not path.startswith("head/next/")}
    more = headed(replace(backbone, params=prefixed_head(kept), head=one), objective)
    assert more[2] == head and "head/next/kernel" not in more[1] and "head/dense/kernel" in more[1]


def test_a_bert_for_pretraining_whose_file_lacks_the_next_sentence_loads_with_that_layer_anew(tmp_path):
    peer = transformers.BertForPreTraining(transformers.BertConfig(**SIZES))
    peer.save_pretrained(tmp_path)
    file, safetensors = tmp_path / "model.safetensors", pytest.importorskip("safetensors.numpy")
    whole = safetensors.load_file(file)
    without = {name: x for name, x in whole.items() if "seq_relationship" not in name}
    assert len(whole) == len(without) + 2
    safetensors.save_file(without, file, {"format": "pt"})
    found = jt.load(str(tmp_path))
    assert {*found.fresh} == {"source_head/next/bias", "source_head/next/kernel"}
    assert "head/next/kernel" not in headed(found, MASKED)[1]
    for name in [name for name in without if name.endswith("transform.dense.weight")]:
        del without[name]
    safetensors.save_file(without, file, {"format": "pt"})
    with pytest.raises(InputError, match="is missing for source_head/dense/kernel"):
        jt.load(str(tmp_path))


OUTPUTS = {"logits": "prediction_logits", "next_logits": "seq_relationship_logits"}


def prefixed_head(params):
    """Leaves of a model with its head as a checkpoint has it."""
    return {
        path.replace("head/", "source_head/", 1) if path.startswith("head/") else path: x for path, x in params.items()
    }


def test_another_objective_brings_a_head_of_its_own_and_leaves_that_of_the_checkpoint_frozen(checkpoint):
    backbone = jt.load(checkpoint[1])
    model, params, head = headed(backbone, objectives.classification(), 3)
    assert head == Head(3) and params.keys() == backbone.params.keys()
    rates = methods.adapt(methods.parse("finetune"), model, params, backbone.config.inputs).rates
    assert {rate for path, rate in rates.items() if path.startswith("source_head/")} == {0.0}
    assert rates["head/kernel"] == 1


def test_a_checkpoint_without_the_head_begins_a_new_one(checkpoint):
    backbone = jt.load(checkpoint[1], head="")
    model, params, head = headed(backbone, MASKED)
    assert head.kind == "masked_lm" and params.keys() == backbone.params.keys()
    adapted = methods.adapt(methods.parse("probe"), model, params, backbone.config.inputs)
    learns = {path for path, rate in adapted.rates.items() if rate}
    assert learns == {path for path in adapted.shapes if path.startswith("head/")} >= {"head/norm/scale"}


@pytest.mark.parametrize("how", ["merged", "apart"])
def test_an_adapter_with_its_head_goes_out_to_the_class_that_predicts_the_same_or_is_refused(
    checkpoint, batch, tmp_path, how
):
    backbone, method = jt.load(checkpoint[1]), methods.parse("lora(rank=2)")
    model, params, head = headed(backbone, MASKED)
    adapted, rng = methods.adapt(method, model, params, backbone.config.inputs), np.random.default_rng(0)
    tree, _ = jax.jit(adapted.start)(jax.random.key(0), params)
    learned = {path: np.asarray(tree[path]) for path, rate in adapted.rates.items() if rate}
    own = {path: (x + rng.normal(0, 0.1, x.shape)).astype(np.float32) for path, x in learned.items()}
    adapter = Adapter(backbone, method, own, head)
    if how == "apart" and head.tied:
        with pytest.raises(InputError, match="a head that is tied to the word embeddings cannot be saved"):
            to_huggingface(tmp_path / "theirs", adapter, how)
        return
    to_huggingface(tmp_path / "theirs", adapter, how)
    peer = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    theirs = peer(**{name: torch.tensor(np.asarray(x)) for name, x in batch["inputs"].items()}).logits.detach()
    kept = np.asarray(batch["inputs"]["attention_mask"]) > 0
    np.testing.assert_allclose(np.asarray(adapter(batch["inputs"])["logits"])[kept], theirs[kept], atol=1e-4)
