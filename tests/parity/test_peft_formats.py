"""Every method of PEFT that has files of ours: the same outputs and gradients, files in and out, merged weights."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtransfer as jt
from jtransfer import methods
from jtransfer.checkpoints import write_adapter
from jtransfer.checkpoints.huggingface import family_of
from jtransfer.checkpoints.peft_formats import FORMATS
from jtransfer.checkpoints.peft_names import table
from jtransfer.methods.method import Intercepted
from jtransfer.models import apply
from jtransfer.tree import FROZEN

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

CLASSES, TOKENS, WORDS = 5, 7, 31
BLOCKS = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
PEERS = {
    "vit": (
        "ViTForImageClassification",
        {**BLOCKS, "image_size": 16, "patch_size": 8, "qkv_bias": True, "num_labels": CLASSES},
    ),
    "bert": (
        "BertForSequenceClassification",
        {**BLOCKS, "vocab_size": WORDS, "max_position_embeddings": 12, "num_labels": CLASSES},
    ),
    "gpt2": (
        "GPT2ForSequenceClassification",
        {"vocab_size": WORDS, "n_positions": 12, "n_embd": 24, "n_layer": 1, "n_head": 2, "num_labels": CLASSES}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 6, "hidden_sizes": [8], "depths": [1], "layer_type": "bottleneck", "num_labels": CLASSES}
        | {"hidden_act": "gelu"},
    ),
}
HEADS = {"vit": "classifier", "bert": "classifier", "gpt2": "score"}
CONVOLUTIONS = r".*(embedder|layer\.\d)\.convolution"
Q = ["q_proj", "fc1"]
CASES = {
    "DoRA": ("vit", "Lora", {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": [*Q, "fc2"], "bias": "all"}),
    "DoRA on convolutions": ("resnet", "Lora", {"r": 2, "use_dora": True, "target_modules": CONVOLUTIONS}),
    "LoRA on embeddings": ("bert", "Lora", {"r": 3, "target_modules": ["word_embeddings", "position_embeddings"]}),
    "DoRA on embeddings": ("bert", "Lora", {"r": 3, "use_dora": True, "target_modules": ["word_embeddings", "query"]}),
    "PiSSA": ("vit", "Lora", {"r": 3, "init_lora_weights": "pissa", "target_modules": Q, "rank_pattern": {"fc1": 2}}),
    "PiSSA with DoRA": (
        "gpt2",
        "Lora",
        {"r": 3, "init_lora_weights": "pissa", "use_dora": True, "target_modules": ["c_attn"]},
    ),
    "OLoRA": ("vit", "Lora", {"r": 3, "init_lora_weights": "olora", "use_rslora": True, "target_modules": Q}),
    "VeRA": ("vit", "Vera", {"r": 5, "target_modules": [*Q, "fc2"], "layers_to_transform": [0]}),
    "VeRA on transposed layers": ("gpt2", "Vera", {"r": 5, "target_modules": ["c_attn", "mlp.c_proj"], "bias": "all"}),
    "LoHa": (
        "vit",
        "LoHa",
        {"r": 2, "alpha": 5, "target_modules": Q, "rank_pattern": {"fc1": 6}, "alpha_pattern": {"fc1": 3}},
    ),
    "LoHa on convolutions": ("resnet", "LoHa", {"r": 2, "target_modules": CONVOLUTIONS}),
    "LoKr": (
        "vit",
        "LoKr",
        {"r": 2, "alpha": 5, "target_modules": "all-linear", "exclude_modules": ["fc2", "classifier"]},
    ),
    "LoKr of two products": (
        "bert",
        "LoKr",
        {"r": 1, "decompose_both": True, "decompose_factor": 4, "target_modules": ["query", "output.dense"]},
    ),
    "LoKr on convolutions": (
        "resnet",
        "LoKr",
        {"r": 1, "alpha": 2, "decompose_factor": 2, "target_modules": CONVOLUTIONS},
    ),
    "OFT": ("vit", "OFT", {"oft_block_size": 7, "target_modules": [*Q, "fc2"], "bias": "oft_only"}),
    "OFT with the inverse": (
        "bert",
        "OFT",
        {"r": 3, "oft_block_size": 0, "use_cayley_neumann": False, "target_modules": ["query"]},
    ),
    "OFT of one block": (
        "vit",
        "OFT",
        {"oft_block_size": 4, "block_share": True, "num_cayley_neumann_terms": 3, "target_modules": Q},
    ),
    "OFT on 1x1 convolutions": (
        "resnet",
        "OFT",
        {"oft_block_size": 2, "target_modules": r".*layer\.[02]\.convolution"},
    ),
    "BOFT": ("vit", "BOFT", {"boft_block_size": 4, "target_modules": Q}),
    "BOFT of two factors": (
        "bert",
        "BOFT",
        {"boft_block_num": 4, "boft_block_size": 0, "boft_n_butterfly_factor": 2, "target_modules": ["query"]},
    ),
    "BOFT on convolutions": ("resnet", "BOFT", {"boft_block_size": 2, "target_modules": r".*layer\.\d\.convolution"}),
    "HRA": ("vit", "HRA", {"r": 3, "target_modules": Q}),
    "HRA on convolutions": ("resnet", "HRA", {"r": 2, "target_modules": CONVOLUTIONS}),
    "FourierFT": (
        "vit",
        "FourierFT",
        {"n_frequency": 20, "n_frequency_pattern": {"fc1": 30}, "scaling": 20.0, "target_modules": Q},
    ),
    "FourierFT on transposed layers": (
        "gpt2",
        "FourierFT",
        {"n_frequency": 20, "scaling": 20.0, "random_loc_seed": 3, "target_modules": ["c_attn"]},
    ),
    "(IA)3": ("vit", "IA3", {"target_modules": ["k_proj", "v_proj", "fc2"], "feedforward_modules": ["fc2"]}),
    "(IA)3 on transposed layers": (
        "gpt2",
        "IA3",
        {"target_modules": ["c_attn", "mlp.c_proj"], "feedforward_modules": ["mlp.c_proj"]},
    ),
    "norms": ("vit", "LNTuning", {"target_modules": r".*layernorm.*"}),
    "norms of BERT": ("bert", "LNTuning", {"target_modules": ["LayerNorm"]}),
}
TYPES = {"LNTuning": "LN_TUNING"}


def randomise(parameters, seed, scale=0.2):
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, x in parameters:
            x.normal_(1.0 if re.search(r"norm\w*\.(\w+\.)*weight|ln_.\.weight", name, re.I) else 0.0, scale)


def make(family):
    name, options = PEERS[family]
    kind = getattr(transformers, name)
    peer = kind(kind.config_class(**options))
    randomise(peer.named_parameters(), 0, 0.4 if family == "resnet" else 0.2)
    return peer.eval()


def batch_of(family):
    rng = np.random.default_rng(2)
    if family in ("vit", "resnet"):
        return {"pixel_values": rng.standard_normal((3, 16, 16, 3)).astype(np.float32)}
    real = np.arange(TOKENS) < np.array([[TOKENS], [5], [3]])
    return {
        "input_ids": np.where(real, rng.integers(3, WORDS, (3, TOKENS)), 0),
        "attention_mask": real.astype(np.int64),
    }


def logits_of(model, batch):
    tensors = {name: torch.from_numpy(x) for name, x in batch.items()}
    if "pixel_values" in tensors:
        tensors["pixel_values"] = tensors["pixel_values"].permute(0, 3, 1, 2)
    return model(**tensors).logits


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(family):
        if family not in made:
            directory = tmp_path_factory.mktemp(family)
            make(family).save_pretrained(directory)
            made[family] = directory, jt.load(str(directory))
        return made[family]

    return base


@pytest.fixture(scope="module", autouse=True)
def without_cuda():
    """BOFT's factors, which PEFT multiplies by a kernel of CUDA's alone."""
    from peft.tuners.boft import layer

    class Blocks:
        forward = staticmethod(lambda x: [torch.stack([torch.block_diag(*one) for one in x])])

    class Diagonal:
        apply = staticmethod(lambda x: Blocks.forward(x)[0])

    before = layer.get_fbd_cuda, layer.FastBlockDiag
    layer.get_fbd_cuda, layer.FastBlockDiag = lambda: Blocks, Diagonal
    torch.backends.mkldnn.enabled = False  # PyTorch 2.13's oneDNN crashes in the backward pass of a convolution
    yield
    layer.get_fbd_cuda, layer.FastBlockDiag = before
    torch.backends.mkldnn.enabled = True


def adapted(case, directory):
    family, name, options = CASES[case]
    start = {"Lora": "init_lora_weights", "IA3": "init_ia3_weights", "LNTuning": ""}.get(name, "init_weights")
    head = {} if family == "resnet" else {"modules_to_save": [HEADS[family]]}  # PEFT saves no head of several modules
    options = ({start: False} if start else {}) | head | options
    model = peft.get_peft_model(make(family), getattr(peft, f"{name}Config")(**options)).eval()
    randomise(
        [(name, x) for name, x in model.named_parameters() if x.requires_grad], 1, 0.4 if family == "resnet" else 0.2
    )
    model.save_pretrained(directory)
    return model


def computed(adapter, batch):
    """Logits, the gradients of their mean square in what learns, and the merged tree; compiled together."""
    model = Intercepted(adapter.model, adapter.method.adds)
    base = adapter.backbone.params | adapter.backbone.state

    def loss(learned, frozen):
        logits = apply(model, base | frozen | learned, batch, train=False)["logits"]
        return jnp.square(logits).mean(), logits

    rates = methods.adapt(adapter.method, adapter.model, base, adapter.backbone.config.inputs).rates
    learned = {path: x for path, x in adapter.params.items() if rates[path] != FROZEN}
    frozen = {path: x for path, x in adapter.params.items() if path not in learned}

    @jax.jit
    def run(learned, frozen, base):
        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(learned, frozen)
        return logits, gradients, adapter.method.merge(base | frozen | learned)

    return run(learned, frozen, base)


def as_ours(backbone, format, tensors):
    """Tensors of PEFT's model in memory by our paths."""
    kind = "classification" if "pixel_values" in backbone.config.inputs else "sequence"
    names, tree = table(family_of(backbone)[1].names(backbone.config, kind), format), {}
    for name, x in tensors.items():
        name = re.sub(r"^base_model\.model\.|\.default|\.modules_to_save", "", name)
        for path, layout, part in names.targets(name.replace("_vector.weight", "_vector")):
            tree[re.sub("^source_head", "head", path)] = layout.load(x.numpy())[part]
    return tree


SLOW = {
    "LoRA on embeddings",
    "PiSSA with DoRA",
    "LoKr of two products",
    "OFT of one block",
    "OFT on 1x1 convolutions",
    "BOFT on convolutions",
    "FourierFT on transposed layers",
    "(IA)3 on transposed layers",
    "norms of BERT",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_files_of_peft_give_its_outputs_and_gradients_and_ours_do_in_peft(case, bases, tmp_path):
    family, name, _ = CASES[case]
    base, backbone = bases(family)
    theirs = adapted(case, tmp_path / "theirs")
    batch = batch_of(family)
    expected = logits_of(theirs, batch)
    expected.square().mean().backward()
    expected = expected.detach().numpy()
    assert np.abs(logits_of(make(family), batch).detach().numpy() - expected).max() > 1e-2

    ours = jt.load_adapter(backbone, str(tmp_path / "theirs"))
    found, gradients, merged = computed(ours, batch)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    format = FORMATS[TYPES.get(name, name.upper())]
    wanted = {name: x.grad for name, x in theirs.named_parameters() if x.requires_grad and x.grad is not None}
    wanted = as_ours(backbone, format, wanted)
    assert wanted.keys() == gradients.keys()
    largest = max(np.abs(x).max() for x in wanted.values())
    for path, x in wanted.items():
        bound = 1e-3 * max(np.abs(x).max(), 1e-3 * largest)
        np.testing.assert_allclose(gradients[path], x.reshape(gradients[path].shape), atol=bound, rtol=0, err_msg=path)

    write_adapter(tmp_path / "ours", ours)
    again = peft.PeftModel.from_pretrained(type(make(family)).from_pretrained(base), tmp_path / "ours").eval()
    np.testing.assert_allclose(logits_of(again, batch).detach(), expected, atol=1e-4, rtol=0)
    if name != "LNTuning":  # PEFT merges no norms where there is a head
        plain = again.merge_and_unload()
        plain.save_pretrained(tmp_path / "merged")
        for path, leaf in jt.load(str(tmp_path / "merged")).params.items():
            path = re.sub("^source_head", "head", path) if ours.head else path
            np.testing.assert_allclose(merged[path], leaf, atol=2e-5, rtol=1e-4, err_msg=path)
