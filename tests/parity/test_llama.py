"""Llama, Mistral and Qwen are those of transformers: in, equal outputs, gradients and continuations, and out."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer import methods, models
from jtransfer.checkpoints import Adapter, to_huggingface, write_adapter
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError
from jtransfer.methods.method import Intercepted
from jtransfer.models import apply
from jtransfer.objectives import lm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CLOSE = {"atol": 1e-4, "rtol": 0}
BATCH, TOKENS, WORDS, PAD = 3, 9, 47, 3
COMMON = {
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 20,
}
VARIANTS = {
    "Llama with biases, Llama 3's places": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3, "eos_token_id": [2, 5]},
    ),
    "Mistral with a window, linear places": (
        "Mistral",
        {"sliding_window": 4, "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    ),
    "Qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3 with wide heads": ("Qwen3", {"head_dim": 10, "num_key_value_heads": 1}),
}


def make(kind, head="ForCausalLM", **options):
    """A peer with every parameter random, norms and biases included."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**COMMON | options)
    peer = getattr(transformers, kind + head)(config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return peer


def padded(side):
    """Tokens (none of which is the one that pads) of several lengths, with their mask."""
    ids = np.random.default_rng(len(side)).integers(PAD + 1, WORDS, (BATCH, TOKENS))
    mask = (np.arange(TOKENS) < np.array([TOKENS, 5, 7])[:, None]).astype(int)
    mask = mask[:, ::-1].copy() if side == "left" else mask
    return {"input_ids": np.where(mask, ids, PAD), "attention_mask": mask}


def as_torch(batch):
    return {name: torch.from_numpy(x) for name, x in batch.items()}


LONG = ("Mistral with a window, linear places", "Qwen2, tied")


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in VARIANTS]
)
def both(request, tmp_path_factory):
    """Peer, our backbone, and the directory that both have read."""
    kind, options = VARIANTS[request.param]
    peer, directory = make(kind, **options), tmp_path_factory.mktemp("llama")
    peer.save_pretrained(directory)
    return peer, jt.load(str(directory)), directory


def test_outputs_loss_and_gradients_are_those_of_transformers(both):
    peer, backbone, _ = both
    batch = padded("right")
    real = batch["attention_mask"].astype(bool)

    def loss(tree):
        outputs = apply(backbone.whole, tree, batch, output_hidden_states=True)
        return lm().score({}, outputs, {"inputs": batch})[0], outputs

    (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(backbone.params)
    labels = torch.from_numpy(np.where(real, batch["input_ids"], -100))
    theirs = peer(**as_torch(batch), labels=labels, output_hidden_states=True)
    theirs.loss.backward()
    assert len(outputs["hidden_states"]) == len(theirs.hidden_states) == 3
    for one, other in zip(outputs["hidden_states"], theirs.hidden_states, strict=True):
        np.testing.assert_allclose(one[real], other.detach().numpy()[real], **CLOSE)
    np.testing.assert_allclose(outputs["logits"][real], theirs.logits.detach().numpy()[real], **CLOSE)
    np.testing.assert_allclose(value, theirs.loss.item(), rtol=1e-5)

    found = FAMILIES[peer.config.model_type].names(backbone.config, "causal_lm").write(gradients, prefix="model.")
    expected = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    peer.zero_grad()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Softmax does not see what is added to all keys, but for the places that turn it.
        assert np.abs(gradient).max() > 1e-5, name
        np.testing.assert_allclose(found[name], gradient, atol=1e-4, rtol=0, err_msg=name)


def test_prompts_go_on_as_in_transformers_from_a_cache(both):
    peer, backbone, _ = both
    prompts = padded("left")
    theirs = peer.generate(**as_torch(prompts), max_new_tokens=8, do_sample=False, pad_token_id=PAD).numpy()
    ours = np.asarray(backbone.generate(prompts, max_new_tokens=8, pad_token_id=PAD))
    np.testing.assert_array_equal(ours[:, : theirs.shape[1]], theirs)
    assert (ours[:, theirs.shape[1] :] == PAD).all(), "transformers stops where every row has ended"


def test_what_was_read_is_written_back_to_the_bit_and_transformers_loads_an_export(both, tmp_path):
    peer, backbone, directory = both
    names = FAMILIES[peer.config.model_type].names(backbone.config, "causal_lm")
    written, file = names.write(backbone.params, "model."), load_file(directory / "model.safetensors")
    assert {name: x.tobytes() for name, x in written.items()} == {name: x.tobytes() for name, x in file.items()}

    to_huggingface(tmp_path / "out", backbone)
    again, said = type(peer).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(said.values()), said
    batch = as_torch(padded("right"))
    torch.testing.assert_close(again.eval()(**batch).logits, peer(**batch).logits)
    # Without what transformers wrote itself, the config is ours alone.
    values = FAMILIES[peer.config.model_type].write(backbone.config)
    (tmp_path / "out/config.json").write_text(json.dumps(values | {"architectures": [type(peer).__name__]}))
    (tmp_path / "out/jtransfer.json").unlink()
    again = type(peer).from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(again(**batch).logits, peer(**batch).logits)
    assert jt.load(str(tmp_path / "out"), sharding="host").config == backbone.config


def test_shards_load_and_a_classifier_reads_the_last_token(tmp_path):
    peer = make("Qwen3", "ForSequenceClassification", num_labels=5, pad_token_id=PAD, head_dim=10)
    peer.save_pretrained(tmp_path / "in", max_shard_size="10KB")
    assert (tmp_path / "in/model.safetensors.index.json").exists()
    backbone, batch = jt.load(str(tmp_path / "in")), padded("right")
    expected = peer(**as_torch(batch)).logits.detach().numpy()
    np.testing.assert_allclose(backbone(batch)["logits"], expected, **CLOSE)


def test_lora_is_pefts_on_a_base_of_floats_and_goes_out_from_one_of_four_bits(tmp_path):
    peft = pytest.importorskip("peft")
    peer = make("Llama", tie_word_embeddings=True)
    peer.save_pretrained(tmp_path / "base")
    options = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    adapted = peft.get_peft_model(peer, peft.LoraConfig(**options)).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    batch = padded("right")
    real = batch["attention_mask"].astype(bool)
    adapter = jt.load_adapter(jt.load(str(tmp_path / "base")), str(tmp_path / "adapter"))
    expected = adapted(**as_torch(batch)).logits.detach().numpy()
    np.testing.assert_allclose(adapter(batch)["logits"][real], expected[real], **CLOSE)

    few = jt.load(str(tmp_path / "base"), bits=4)
    on_few = Adapter(few, adapter.method, adapter.params)
    write_adapter(tmp_path / "out", on_few)
    mine, theirs = (load_file(tmp_path / where / "adapter_model.safetensors") for where in ("out", "adapter"))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match="cannot be merged into kernels of 4 bits"):
        on_few.merged()
    with pytest.raises(InputError, match="has kernels of 4 bits, which this format does not have"):
        to_huggingface(tmp_path / "hf", few)


def test_methods_reach_in_as_into_any_other_model_and_all_that_they_add_matters():
    model = models.build("llama", vocabulary=WORDS, positions=20, width=16, depth=1, heads=4, kv_heads=2, hidden=20)
    method, inputs = (
        methods.parse("lora(rank=2) + ia3 + prefix(length=3) + prompt(length=2) + houlsby"),
        model.config.inputs,
    )
    base = models.shapes_of(model, inputs)
    shapes = methods.adapt(method, models.Classifier(model, 3), base, inputs).shapes
    added = {path for path in shapes if path not in base and not path.startswith("head/")}
    parts = {part for path in added for part in ("lora", "ia3", "prefix", "prompt", "_adapter") if part in path}
    assert len(parts) == 5 and shapes["encoder/block_0/attention/prefix/key"].shape == (3, 8), "two heads of four"
    draw = np.random.default_rng(0).normal
    tree = {path: np.float32(draw(0.1, 0.5, x.shape)) for path, x in shapes.items()}

    @jax.jit
    @jax.grad
    def gradients(own):
        outputs = apply(Intercepted(model, method.adds), tree | own, {"input_ids": np.arange(6)[None]})
        return (outputs["features"] ** 3).sum()

    found = gradients({path: tree[path] for path in added})
    for path in added:
        assert np.abs(found[path]).max() > 1e-6, path


@pytest.fixture(scope="module")
def plain():
    """Tensors by the names of files, and the values of their config."""
    peer = make("Qwen2", tie_word_embeddings=True)
    tensors = {name: x.detach().numpy().copy() for name, x in peer.named_parameters()}
    return tensors, COMMON | {"model_type": "qwen2", "tie_word_embeddings": True, "architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_type 'linear' needs factor"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported; expected False"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* load float weights with bits=4"),
        ({"num_key_value_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
        ({"num_key_value_heads": 4}, r"'model.layers.0.self_attn.k_proj.bias' has shape \[12\] for .* expected \[24\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(plain, tmp_path, change, message):
    tensors, values = plain
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(InputError, match=message):
        jt.load(str(tmp_path), sharding="host")
