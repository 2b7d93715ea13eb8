"""ELMo of AllenNLP's files against a model in PyTorch that is written here anew, from the paper and the files alone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from etils import epath

import jtransfer as jt
from jtransfer.checkpoints.families import allennlp
from jtransfer.data import text
from jtransfer.errors import InputError
from jtransfer.models import ElmoConfig, Headed, apply, build, of_config, shapes_of
from jtransfer.objectives import bilm
from jtransfer.train import costs

h5py = pytest.importorskip("h5py")
torch = pytest.importorskip("torch")
F = torch.nn.functional

FILTERS, DIM, WIDTH, HIDDEN, CELL, STATE = [[1, 3], [2, 4], [3, 5]], 4, 6, 9, 0.2, 0.06
OPTIONS = {
    "char_cnn": {
        "activation": "relu",
        "embedding": {"dim": DIM},
        "filters": FILTERS,
        "max_characters_per_token": 50,
        "n_characters": 262,
        "n_highway": 2,
    },
    "lstm": {
        "cell_clip": CELL,
        "dim": HIDDEN,
        "n_layers": 2,
        "proj_clip": STATE,
        "projection_dim": WIDTH,
        "use_skip_connections": True,
    },
}
TEXTS = ["The bank of the river", "naïve", "A bank, a loan: " + "x" * 60]
SPLIT = [["The", "bank", "of", "the", "river"], ["naïve"], ["A", "bank", ",", "a", "loan", ":", "x" * 60]]
CELLS = [f"RNN_{way}/RNN/MultiRNNCell/Cell{i}/LSTMCell" for way in (0, 1) for i in (0, 1)]


def arrays():
    draws = np.random.default_rng(0)
    width = sum(number for _, number in FILTERS)
    shapes = {"char_embed": (261, DIM), "CNN_proj/W_proj": (width, WIDTH), "CNN_proj/b_proj": (WIDTH,)}
    for i, (size, number) in enumerate(FILTERS):
        shapes |= {f"CNN/W_cnn_{i}": (1, size, DIM, number), f"CNN/b_cnn_{i}": (number,)}
    for k, part in [(0, "transform"), (0, "carry"), (1, "transform"), (1, "carry")]:
        shapes |= {f"CNN_high_{k}/W_{part}": (width, width), f"CNN_high_{k}/b_{part}": (width,)}
    for cell in CELLS:
        shapes |= {f"{cell}/W_0": (2 * WIDTH, 4 * HIDDEN), f"{cell}/B": (4 * HIDDEN,), f"{cell}/W_P_0": (HIDDEN, WIDTH)}
    return {name: draws.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write(directory, tensors, options=OPTIONS):
    with h5py.File(directory / "elmo_weights.hdf5", "w") as file:
        for name, x in tensors.items():
            file[name] = x
    (directory / "elmo_options.json").write_text(json.dumps(options))
    return str(directory)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    tensors = arrays()
    return jt.load(write(tmp_path_factory.mktemp("elmo"), tensors)), tensors


def letters(word):
    """The row of a word as AllenNLP's indexer makes it, by hand: bytes and marks, all shifted by 1."""
    own = [258, *word, 259] if isinstance(word, list) else [258, *word.encode()[:48], 259]
    return [c + 1 for c in own + [260] * (50 - len(own))]


def theirs(w, words):
    """The states of one text without padding: `[words + 2, 2 WIDTH]` for each layer."""
    ids = torch.tensor([letters(word) for word in [[256], *words, [257]]])
    table = torch.cat([torch.zeros(1, DIM), w["char_embed"]])
    x, found = table[ids].transpose(1, 2), []
    for i in range(len(FILTERS)):
        y = F.conv1d(x, w[f"CNN/W_cnn_{i}"][0].permute(2, 1, 0), w[f"CNN/b_cnn_{i}"])
        found.append(F.relu(y.max(2).values))
    x = torch.cat(found, 1)
    for k in range(2):
        gate = torch.sigmoid(x @ w[f"CNN_high_{k}/W_carry"] + w[f"CNN_high_{k}/b_carry"])
        new = F.relu(x @ w[f"CNN_high_{k}/W_transform"] + w[f"CNN_high_{k}/b_transform"])
        x = gate * new + (1 - gate) * x
    x = x @ w["CNN_proj/W_proj"] + w["CNN_proj/b_proj"]
    states = [torch.cat([x, x], 1)]
    ways = [x, x]
    for layer in range(2):
        after = [direction(w, way, layer, one) for way, one in enumerate(ways)]
        ways = [new + old for new, old in zip(after, ways, strict=True)] if layer else after
        states.append(torch.cat(ways, 1))
    return states


def direction(w, way, layer, x):
    cell = f"RNN_{way}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    state, memory, found = torch.zeros(WIDTH), torch.zeros(HIDDEN), {}
    for t in range(len(x))[:: -1 if way else 1]:
        enter, new, keep, leave = (torch.cat([x[t], state]) @ w[f"{cell}/W_0"] + w[f"{cell}/B"]).chunk(4)
        memory = torch.sigmoid(keep + 1) * memory + torch.sigmoid(enter) * torch.tanh(new)
        memory = memory.clamp(-CELL, CELL)
        state = ((torch.sigmoid(leave) * torch.tanh(memory)) @ w[f"{cell}/W_P_0"]).clamp(-STATE, STATE)
        found[t] = state
    return torch.stack([found[t] for t in range(len(x))])


def test_states_of_every_layer_and_their_gradients_are_those_of_a_model_in_torch(loaded):
    backbone, tensors = loaded
    w = {name: torch.tensor(x, requires_grad=True) for name, x in tensors.items()}
    batch = backbone.preprocess(TEXTS)
    assert batch["input_ids"].shape == (3, 16, 50) and batch.keys() == {"input_ids", "attention_mask"}

    def ours(params):
        outputs = apply(backbone.model, params, batch, output_hidden_states=True)
        return sum((jnp.sin(7 * x) ** 2).sum() for x in outputs["hidden_states"]), outputs

    (value, outputs), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(backbone.params)
    expected = [theirs(w, words) for words in SPLIT]
    loss = sum((torch.sin(7 * x[1:-1]) ** 2).sum() for states in expected for x in states)
    loss.backward()

    for row, states in enumerate(expected):
        for layer, x in enumerate(states):
            own = np.asarray(outputs["hidden_states"][layer][row])
            np.testing.assert_allclose(own[: len(x) - 2], x.detach()[1:-1], atol=2e-6)
            assert not own[len(x) - 2 :].any()  # padding
        last = states[-1].detach().numpy()
        np.testing.assert_allclose(outputs["features"][row], last[1:-1].mean(0), atol=2e-6)
        np.testing.assert_allclose(outputs["neighbours"][row, : len(last) - 2, 0], last[:-2, :WIDTH], atol=2e-6)
        np.testing.assert_allclose(outputs["neighbours"][row, : len(last) - 2, 1], last[2:, WIDTH:], atol=2e-6)
    clipped = expected[0][1].detach().abs()
    assert (clipped == STATE).any() and (clipped < STATE).any()  # so that bounds are seen to hold

    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    grads = {name: x.grad.numpy() for name, x in w.items()}
    pairs = {"embeddings/character/embedding": np.pad(grads["char_embed"], ((1, 0), (0, 0)))}
    pairs |= {"embeddings/projection/kernel": grads["CNN_proj/W_proj"]}
    pairs |= {f"embeddings/conv_{i}/kernel": grads[f"CNN/W_cnn_{i}"][0] for i in range(3)}
    pairs |= {f"embeddings/highway_{i}/carry/kernel": grads[f"CNN_high_{i}/W_carry"] for i in range(2)}
    paths = [f"encoder/block_{i}/{way}" for way in ("forward", "backward") for i in (0, 1)]
    for name, path in zip(CELLS, paths, strict=True):
        pairs |= {f"{path}/input/kernel": grads[f"{name}/W_0"][:WIDTH]}
        pairs |= {
            f"{path}/cell/state/kernel": grads[f"{name}/W_0"][WIDTH:],
            f"{path}/cell/state/bias": grads[f"{name}/B"],
        }
        pairs |= {f"{path}/cell/projection/kernel": grads[f"{name}/W_P_0"]}
    for path, x in pairs.items():
        np.testing.assert_allclose(gradients[path], x, atol=1e-4 * max(1, np.abs(x).max()), err_msg=path)


def test_the_language_model_asks_for_each_word_from_both_sides_as_cross_entropy_in_torch():
    draws = np.random.default_rng(1)
    logits, ids = draws.normal(size=(2, 4, 2, 7)).astype(np.float32), draws.integers(0, 7, (2, 4))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = {"inputs": {"word_ids": jnp.array(ids), "attention_mask": jnp.array(mask)}}
    x = torch.tensor(logits, requires_grad=True)
    kept = torch.tensor(mask, dtype=torch.bool)
    expected = sum(F.cross_entropy(x[:, :, way][kept], torch.tensor(ids)[kept]) for way in (0, 1)) / 2
    expected.backward()

    objective = bilm()
    value, gradient = jax.value_and_grad(lambda x: objective.score({}, {"logits": x}, batch)[0])(jnp.array(logits))
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, x.grad, atol=1e-7)
    each = objective.measure({"logits": jnp.array(logits)}, batch)
    assert each["weight"].tolist() == [8, 4]
    np.testing.assert_allclose((each["loss"] * each["weight"]).sum() / 12, expected.item(), rtol=1e-6)


def test_a_word_is_predicted_from_all_words_but_itself_by_one_layer_for_both_directions(loaded):
    backbone, _ = loaded
    head = ElmoConfig(vocabulary=WIDTH).language_head
    assert head.kind == "bilm"
    params = backbone.params | {"source_head/kernel": jnp.eye(WIDTH), "source_head/bias": jnp.zeros(WIDTH)}
    batch = backbone.preprocess(["a b river d", "a b bank d"], length=4)
    free = of_config(dataclasses.replace(backbone.config, cell_clip=0, projection_clip=0))  # so that all words tell
    logits = jax.jit(lambda params: apply(Headed(free, head), params, batch)["logits"])(params)
    assert logits.shape == (2, 4, 2, WIDTH)
    differ = np.abs(logits[0] - logits[1]).max(-1) > 0
    assert differ.tolist() == [[False, True], [False, True], [False, False], [True, False]]


def test_every_turn_of_the_loop_over_words_counts_in_what_a_step_costs():
    model = build("elmo", character_width=1, filters=(1,), highways=0, width=8, hidden=16, depth=1, vocabulary=0)
    tree, flops = shapes_of(model, model.config.inputs), []
    for words in (2, 4):
        letters = jax.ShapeDtypeStruct((1, words, 50), np.int32)
        flops.append(costs.forward_flops(model, tree, {"input_ids": letters}))
    products = 2 * 2 * (8 * 64 + 8 * 64 + 16 * 8)  # of a word in both directions: of its input, its state and output
    assert 2 * products < flops[1] - flops[0] < 1.5 * 2 * products


def test_words_become_characters_as_in_allennlp(tmp_path):
    words = {"[PAD]": 0, "[UNK]": 1, "bank": 2}
    spec = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    spec.normalizer = tokenizers.normalizers.Lowercase()
    spec.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    spec.save(str(tmp_path / "tokenizer.json"))
    made = text.tokenizer(epath.Path(tmp_path), {}, ("input_ids", "attention_mask", "word_ids"), 4, False)
    found = made(["Bank naïve"], length=3)
    assert found["input_ids"][0].tolist() == [letters("Bank"), letters("naïve"), [0] * 50]  # as they stand in the text
    assert found["attention_mask"].tolist() == [[1, 1, 0]] and found["word_ids"].tolist() == [[2, 1, 0]]
    assert made.places(["Bank naïve"], length=3).tolist() == [[[0, 4], [5, 10], [-2, -2]]]
    assert made.read(["a b c d e", ""])[1].tolist() == [True, False]
    assert made.decode(found["input_ids"]) == ["Bank naïve"]
    assert made.decode(made(["a" + "ï" * 30])["input_ids"]) == ["a" + "ï" * 23]  # 48 bytes, of the last letter one
    with pytest.raises(InputError, match="there are pairs of texts"):
        made(["a"], ["b"])


def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path):
    tensors = arrays()
    del tensors[f"{CELLS[0]}/B"]
    name = write(tmp_path, tensors | {"CNN_proj/b_proj": np.zeros(WIDTH + 1, np.float32)})
    with pytest.raises(InputError, match=r"'CNN_proj/b_proj' has shape \[7\] .*, expected \[6\]") as error:
        jt.load(name)
    assert "'RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell/B' is missing" in str(error.value)
    assert len(str(error.value).splitlines()) == 1

    lstm = OPTIONS["lstm"]
    for changes, said in (
        ({"lstm": lstm | {"use_skip_connections": False}}, "use_skip_connections is false; expected true"),
        ({"lstm": {k: x for k, x in lstm.items() if k != "dim"}}, "'lstm.dim' is missing; expected a whole number"),
        ({"char_cnn": 3}, "expected an object under 'char_cnn'"),
        ({"char_cnn": OPTIONS["char_cnn"] | {"filters": [[2, 3]]}}, r"expected widths 1, 2, 3, \.\.\. in this order"),
        ({"char_cnn": OPTIONS["char_cnn"] | {"activation": "elu"}}, "activation is 'elu'; expected relu or tanh"),
    ):
        with pytest.raises(InputError, match=rf"elmo_options.json: .*{said}"):
            jt.load(write(tmp_path, arrays(), OPTIONS | changes))

    (tmp_path / "elmo_options.json").unlink()
    with pytest.raises(InputError, match=r"no file ends with 'options.json' beside it"):
        jt.load(name)
    write(tmp_path, arrays())
    file = tmp_path / "elmo_weights.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InputError, match="is truncated or no HDF5 file"):
        jt.load(name)


def test_a_link_out_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", arrays())
    tensors = arrays()
    del tensors["char_embed"]
    name = write(tmp_path, tensors)
    with h5py.File(tmp_path / "elmo_weights.hdf5", "a") as file:
        file["char_embed"] = h5py.ExternalLink(str(tmp_path / "other/elmo_weights.hdf5"), "char_embed")
    with pytest.raises(InputError, match="'char_embed' is missing"):
        jt.load(name)


def test_a_tree_goes_back_into_their_names_and_layouts_bit_for_bit(loaded):
    backbone, tensors = loaded
    written = allennlp.describe({}, OPTIONS).names.write(backbone.params)
    assert written.keys() == tensors.keys()
    for name, x in tensors.items():
        if not name.endswith("/B"):
            np.testing.assert_array_equal(written[name], x, err_msg=name)
        np.testing.assert_allclose(written[name], x, atol=1e-7, err_msg=name)  # 1 was added and taken away
