"""A language model in fastai's names, made by torch code of the same layout, loads, computes the same and goes back."""

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import save_file

import jtransfer as jt
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")

VOCAB, WIDTH, HIDDEN, LAYERS = 9, 4, 6, 3
ITOS = ["xxunk", "xxpad", "xxbos", "the", "film", "was", "good", "bad", "."]


class WeightDropout(torch.nn.Module):
    """fastai's: the recurrent kernel is kept raw beside the layer, which has a copy of it."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.weight_hh_l0_raw = torch.nn.Parameter(module.weight_hh_l0.data.clone())


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Embedding(VOCAB, WIDTH, padding_idx=1)
        self.encoder_dp = torch.nn.Module()
        self.encoder_dp.emb = self.encoder
        sizes = [WIDTH, *[HIDDEN] * (LAYERS - 1), WIDTH]
        layers = [torch.nn.LSTM(*pair, batch_first=True) for pair in pairwise(sizes)]
        self.rnns = torch.nn.ModuleList([WeightDropout(one) for one in layers])


@pytest.fixture(scope="module")
def peer():
    torch.manual_seed(0)
    decoder = torch.nn.Module()
    model = torch.nn.ModuleList([Encoder(), decoder])
    decoder.decoder = torch.nn.Linear(WIDTH, VOCAB)
    decoder.decoder.weight = model[0].encoder.weight
    return model


@pytest.fixture(scope="module")
def directory(peer, tmp_path_factory):
    """What the lines in docs/text.md make of a `.pth` and a pickled list of words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    where = tmp_path_factory.mktemp("fastai")
    save_file({k: np.ascontiguousarray(x) for k, x in peer.state_dict().items()}, where / "model.safetensors")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(ITOS)}, unk_token="xxunk"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.save(str(where / "tokenizer.json"))
    (where / "tokenizer_config.json").write_text(json.dumps({"pad_token": "xxpad"}))
    return where


def test_logits_are_those_of_the_same_model_in_torch(peer, directory):
    ours = jt.load(str(directory))
    assert (ours.config.vocabulary, ours.config.widths) == (VOCAB, (HIDDEN, HIDDEN, WIDTH))
    assert (ours.config.weight_dropout, ours.config.word_dropout) == (0.2, 0.02)  # fastai's defaults
    assert ours.head.kind == "causal_lm" and ours.classes == ()
    inputs = ours.preprocess(["The film was good .", "bad"], length=5)
    assert inputs["input_ids"].tolist() == [[3, 4, 5, 6, 8], [7, 1, 1, 1, 1]]
    with torch.no_grad():
        x = peer[0].encoder(torch.tensor(inputs["input_ids"][:1]).long())
        for one in peer[0].rnns:
            one.module.weight_hh_l0.copy_(one.weight_hh_l0_raw)
            x, _ = one.module(x)
        theirs = peer[1].decoder(x)
    np.testing.assert_allclose(ours(inputs)["logits"][:1], theirs, atol=1e-6)


def test_the_table_writes_what_it_reads_and_the_encoder_alone_as_fastai_saves_it(peer, directory, described):
    ours, names = jt.load(str(directory)), described(directory).names
    state = {name: x.numpy() for name, x in peer.state_dict().items()}
    written = names.write(ours.params)
    assert written.keys() == {name for name in state if not names.ignores(name)}
    for name, x in written.items():
        np.testing.assert_array_equal(x, state[name])
    alone = names.write(ours.without_head().params)
    assert alone.keys() == {name.removeprefix("0.") for name in written if name.startswith("0.")}


def test_an_encoder_alone_loads_with_rates_of_dropout_from_its_config(peer, tmp_path):
    state = {name.removeprefix("0."): x for name, x in peer.state_dict().items() if name.startswith("0.")}
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"output_p": 0.4, "weight_p": 0.5}))
    ours = jt.load(str(tmp_path))
    assert ours.head is None and (ours.config.dropout, ours.config.weight_dropout) == (0.4, 0.5)
    with_classes = jt.load(str(tmp_path), classes=3)
    assert with_classes.params["source_head/kernel"].shape == (3 * WIDTH, 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.pop("0.encoder.weight"), "'0.encoder.weight' or '0.rnns.0.module.weight_ih_l0' is missing"),
        (lambda x: x.update({"1.decoder.weight": np.zeros((VOCAB, WIDTH), np.float32)}), "not tied is not supported"),
        (lambda x: x.pop("0.rnns.1.weight_hh_l0_raw"), "rnns.1.weight_hh_l0_raw' is missing"),
        (lambda x: x.update({"0.rnns.1.module.bias_hh_l0": np.zeros(3, np.float32)}), "has shape [3]"),
    ],
)
def test_what_is_no_such_model_is_refused_by_name(peer, tmp_path, change, said):
    tensors = {name: np.ascontiguousarray(x) for name, x in peer.state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        jt.load(str(tmp_path))
    assert said in str(error.value)
