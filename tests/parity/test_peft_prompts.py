"""Prompt and prefix tuning of PEFT in and out: equal outputs, gradients and files."""

import json
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jtransfer as jt
from jtransfer import methods
from jtransfer.checkpoints import Adapter, write_adapter
from jtransfer.errors import InputError
from jtransfer.methods.method import Intercepted
from jtransfer.models import apply
from jtransfer.tree import FROZEN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

LENGTH, CLASSES, VOCABULARY = 4, 5, 31
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
BERT |= {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "num_labels": CLASSES}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 2, "num_labels": CLASSES}
GPT2 |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLAIN, PROJECTED = {}, {"prefix_projection": True, "encoder_hidden_size": 6}
CASES = {  # all that PEFT runs of the two with these classes
    "prompt, classes of texts by BERT": ("Prompt", "BertForSequenceClassification", BERT, "SEQ_CLS", PLAIN),
    "prompt, classes of tokens by BERT": ("Prompt", "BertForTokenClassification", BERT, "TOKEN_CLS", PLAIN),
    "prompt, classes of texts by GPT-2": ("Prompt", "GPT2ForSequenceClassification", GPT2, "SEQ_CLS", PLAIN),
    "prompt, language by GPT-2": ("Prompt", "GPT2LMHeadModel", GPT2, "CAUSAL_LM", PLAIN),
    "prefix, features of BERT": ("Prefix", "BertModel", BERT, "FEATURE_EXTRACTION", PLAIN),
    "prefix, language by GPT-2": ("Prefix", "GPT2LMHeadModel", GPT2, "CAUSAL_LM", PLAIN),
    "projected prefix, features of BERT": ("Prefix", "BertModel", BERT, "FEATURE_EXTRACTION", PROJECTED),
    "projected prefix, language by GPT-2": ("Prefix", "GPT2LMHeadModel", GPT2, "CAUSAL_LM", PROJECTED),
}
QUICK = (
    "prompt, classes of texts by BERT",
    "prompt, language by GPT-2",
    "prefix, features of BERT",
    "projected prefix, language by GPT-2",
)
OUTPUTS = ("logits", "last_hidden_state", "pooler_output")


def outputs_of(outputs):
    """What a model predicts, of the words of the text alone."""
    found = {key: outputs[key] for key in OUTPUTS[:1] if key in outputs}
    found = found or {key: outputs[key] for key in OUTPUTS[1:] if key in outputs}
    return {key: x[:, -7:] if x.ndim == 3 else x for key, x in found.items()}


@pytest.fixture(
    scope="module", params=[pytest.param(case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CASES]
)
def both(request, tmp_path_factory, randomised):
    """A prompt or prefix as PEFT and as we have it on one base, with outputs and gradients of their mean square."""
    method, name, sizes, task, more = CASES[request.param]
    kind, where = getattr(transformers, name), tmp_path_factory.mktemp("both")
    peer = randomised(kind(kind.config_class(**sizes)))
    peer.save_pretrained(where / "base")
    config = getattr(peft, f"{method}TuningConfig")(task_type=task, num_virtual_tokens=LENGTH, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(peer, config).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in theirs.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.4)
        theirs.save_pretrained(where / "theirs")
        rng = np.random.default_rng(2)
        batch = {"input_ids": rng.integers(3, VOCABULARY, (3, 7)), "attention_mask": np.ones((3, 7), int)}
        if "gpt2" not in name.lower():  # where GPT-2 gets embeddings, PEFT's class takes padding for words
            batch["attention_mask"][1:, 5:] = 0
            batch["token_type_ids"] = np.tile(np.arange(7) > 3, (3, 1)).astype(int)
        if task == "FEATURE_EXTRACTION":
            del batch["token_type_ids"]  # which PEFT then ignores
        found = outputs_of(theirs(**{key: torch.from_numpy(x) for key, x in batch.items()}))
        sum(x.square().mean() for x in found.values()).backward()
    backbone = jt.load(str(where / "base"))
    return {
        "where": where,
        "kind": kind,
        "theirs": theirs,
        "outputs": {key: x.detach().numpy() for key, x in found.items()},
        "batch": batch,
        "ours": jt.load_adapter(backbone, str(where / "theirs")),
        "projection": more.get("encoder_hidden_size", 0),
    }


def run(adapter, batch, adds, params, base):
    """Outputs, and the gradients of their mean square in some leaves."""
    model = Intercepted(adapter.model, adds)

    @jax.jit
    def value(params):
        def loss(params):
            outputs = outputs_of(apply(model, base | params, batch))
            return sum(jnp.square(x).mean() for x in outputs.values()), outputs

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, outputs), gradients = value(params)
    return outputs, gradients


def test_outputs_and_gradients_are_those_of_peft(both):
    ours, batch = both["ours"], both["batch"]
    outputs, gradients = run(ours, batch, ours.method.adds, ours.params, ours.tree)
    assert outputs.keys() == both["outputs"].keys()
    for key, expected in both["outputs"].items():
        np.testing.assert_allclose(outputs[key], expected, atol=1e-4, rtol=0, err_msg=key)
    theirs = {name: x.grad.numpy() for name, x in both["theirs"].named_parameters() if x.requires_grad}
    own = {path: x for path, x in gradients.items() if "head/" not in path}
    if projection := both["projection"]:
        method = methods.prefix(LENGTH, projection)
        named = {
            "embedding.weight": "embedding",
            "transform.0.weight": "hidden/kernel",
            "transform.0.bias": "hidden/bias",
        }
        named |= {"transform.2.weight": "out/kernel", "transform.2.bias": "out/bias"}
        given = {
            name.split("default.")[1]: x.detach().numpy()
            for name, x in both["theirs"].named_parameters()
            if "prompt_encoder" in name
        }
        params = {
            f"encoder/prefix/{ours}": given[name] if ours == "embedding" else given[name].T
            for name, ours in named.items()
        }
        folded = method.fold(params)
        for path in own:
            np.testing.assert_allclose(folded[path], ours.params[path], atol=1e-5)
        _, own = run(ours, batch, method.adds, params, ours.tree)
        expected = {f"encoder/prefix/{ours}": theirs[f"prompt_encoder.default.{name}"] for name, ours in named.items()}
        expected = {path: x if path.endswith("embedding") else x.T for path, x in expected.items()}
    else:
        whole = theirs["prompt_encoder.default.embedding.weight"]
        expected = dict(zip(sorted(own), np.split(whole, len(own), axis=1), strict=True))
    assert own.keys() == expected.keys()
    for path, gradient in expected.items():
        assert np.abs(gradient).max() > 0, path
        np.testing.assert_allclose(own[path], gradient, atol=1e-3 * np.abs(gradient).max(), rtol=0, err_msg=path)


def test_what_we_write_gives_the_outputs_in_peft_heads_included(both, tmp_path):
    write_adapter(tmp_path / "ours", both["ours"])
    again = peft.PeftModel.from_pretrained(
        both["kind"].from_pretrained(both["where"] / "base"), tmp_path / "ours"
    ).eval()
    found = outputs_of(again(**{key: torch.from_numpy(x) for key, x in both["batch"].items()}))
    for key, expected in both["outputs"].items():
        np.testing.assert_allclose(found[key].detach(), expected, atol=1e-4, rtol=0, err_msg=key)
    one, other = (
        load_file(both["where"] / "theirs" / "adapter_model.safetensors"),
        load_file(tmp_path / "ours" / "adapter_model.safetensors"),
    )
    assert one.keys() == other.keys()
    for name, x in one.items():
        np.testing.assert_array_equal(other[name], x, name)


def test_the_method_of_what_is_loaded_has_exactly_its_leaves_and_they_learn(both):
    ours, backbone = both["ours"], both["ours"].backbone
    adapted = methods.adapt(ours.method, ours.model, backbone.params, backbone.config.inputs)
    assert {
        path: x.shape for path, x in adapted.shapes.items() if path not in backbone.params or path in ours.params
    } == {path: x.shape for path, x in ours.params.items()}
    assert {path for path, rate in adapted.rates.items() if rate != FROZEN} >= ours.params.keys()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, randomised):
    """A backbone of BERT with a head, and the values and tensors of a prompt on it."""
    where = tmp_path_factory.mktemp("saved")
    peer = randomised(transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)))
    peer.save_pretrained(where / "base")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=LENGTH)
    peft.get_peft_model(peer, config).save_pretrained(where / "prompt")
    values = json.loads((where / "prompt/adapter_config.json").read_text())
    return jt.load(str(where / "base")), values, load_file(where / "prompt/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("values", "tensors", "message"),
    [
        (
            {"num_virtual_tokens": 3},
            {},
            r"'prompt_embeddings' has shape \[4, 24\] for embeddings/prompt/tokens, expected",
        ),
        ({"num_virtual_tokens": 0}, {}, "num_virtual_tokens is 0; expected a whole number above 0"),
        ({"num_virtual_tokens": 20}, {}, "prompt: 20 places before texts of 8 tokens are too many; the model has 24"),
        ({"num_transformer_submodules": 2}, {}, "num_transformer_submodules is 2; expected 1"),
        ({"new_option": 1}, {}, "not supported: new_option=1"),
        ({"peft_type": "PREFIX_TUNING"}, {}, "'prompt_embeddings' has shape .* for encoder/block_0/attention"),
        ({}, {"prompt_embeddings": None}, "'prompt_embeddings' is missing for embeddings/prompt/tokens"),
        ({}, {"base_model.classifier.bias": None}, "'classifier.bias' is missing"),
        ({}, {"bert.own": np.zeros(2)}, "not supported: 'bert.own' \\(expected base_model"),
        ({}, {"base_model.own": np.zeros(2)}, "'own' belongs to no leaf"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values, tensors, message, saved, tmp_path):
    backbone, config, found = saved
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | values))
    kept = {name: x for name, x in (found | tensors).items() if x is not None}
    save_file(kept, tmp_path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=message):
        jt.load_adapter(backbone, str(tmp_path))


def test_what_peft_cannot_say_is_refused_and_nothing_written(saved, tmp_path):
    backbone, _, _ = saved
    for text in ("prefix(length=2, shift=False)", "prompt(length=2) + prefix(length=2)", "prompt(length=2) + ia3"):
        method = methods.parse(text)
        adapted = methods.adapt(method, backbone.whole, backbone.params, backbone.config.inputs)
        own = {path: np.ones(x.shape, np.float32) for path, x in adapted.shapes.items() if path not in backbone.params}
        with pytest.raises(InputError, match=f"peft: method '{re.escape(text)}' adds what PEFT's P.*_TUNING has not"):
            write_adapter(tmp_path / "adapter", Adapter(backbone, method, own))
    assert not (tmp_path / "adapter").exists()
