"""Prompts scored by likelihood as transformers scores them, and calibrated as Zhao et al. 2021 do."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import jtransfer as jt
from jtransfer import config
from jtransfer.data import sources
from jtransfer.devices.sharding import everywhere, make_mesh
from jtransfer.errors import InputError
from jtransfer.evaluate import in_context, likelihood, protocols, run
from jtransfer.evaluate.protocols import prompts
from jtransfer.solvers import draws

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NAMES, POSITIONS = ("sport", "world news", "money"), 96
TEMPLATE = "{text}\nTopic: {label}\n\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small GPT-2 of transformers with a byte-pair tokenizer, a table of 90 labelled texts, and that peer."""
    directory = tmp_path_factory.mktemp("gpt2")
    rng = np.random.default_rng(0)
    words = ["oil", "goal", "bank", "vote", "team", "cup", "stock", "war", "match", "rate"]
    rows = [{"text": " ".join(rng.choice(words, rng.integers(1, 5))), "label": NAMES[i % 3]} for i in range(90)]
    (directory / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([f"{row['text']}\nTopic: {row['label']}\n\n" for row in rows], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"n_positions": POSITIONS, "n_embd": 16, "n_head": 2, "n_layer": 2, "bos_token_id": 0, "eos_token_id": 0}
    peer = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=290, **sizes)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "ln_" not in name:
                parameter.normal_(0, 0.3)
    peer.save_pretrained(directory)
    return directory, peer, tokenizer


@pytest.fixture(scope="module")
def qwen(made, tmp_path_factory):
    """A small Qwen 2 of transformers, whose keys are shared by two heads, with the tokenizer of the GPT-2."""
    tokenizer, directory = made[2], tmp_path_factory.mktemp("qwen")
    tokenizer.save(str(directory / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "initializer_range": 0.3}
    peer = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(vocab_size=290, bos_token_id=0, eos_token_id=0, **sizes)
    ).eval()
    peer.save_pretrained(directory)
    return directory, peer, tokenizer


def task_of(directory, *protocols_, **changes):
    values = {"backbone": str(directory), "data": f"table:{directory}/rows.jsonl", "protocols": protocols_}
    made = ConfigDict(config.evaluate_defaults())
    made.update(values | {"store": str(directory / "store"), "batch": 8} | changes)
    return run.prepare(made)


def by_peer(peer, tokenizer, prompt, word):
    """The sum of log-probabilities of a word's tokens after a prompt, as of the whole text."""
    start, ids = (tokenizer.encode(text).ids for text in (prompt, prompt + word))
    assert ids[: len(start)] == start
    with torch.no_grad():
        found = torch.log_softmax(peer(torch.tensor([ids])).logits[0], -1)
    return sum(float(found[at - 1, ids[at]]) for at in range(len(start), len(ids)))


@pytest.mark.parametrize("kind", ["made", "qwen"])
def test_scores_of_prompts_are_the_log_likelihoods_of_transformers(kind, request):
    directory, peer, tokenizer = request.getfixturevalue(kind)
    backbone, mesh = jt.load(str(directory)), make_mesh({"data": 2, "rest": -1})
    words = [" sport", " world news", " money"]
    for start in ("", "vote war vote\nTopic: world news\n\ngoal\nTopic: sport\n\n"):  # read once where all have it
        texts = [f"{start}{text}\nTopic:" for text in ("oil", "goal team cup goal goal", "bank rate N/A", "")]
        asked = likelihood.questions(backbone.preprocess, texts, words, (0,))
        likelihoods = likelihood.Likelihoods(backbone.whole, backbone.config, mesh)
        sums, counts = likelihoods(jax.device_put(dict(backbone.params), everywhere(mesh)), asked)
        wanted = [[by_peer(peer, tokenizer, text, word) for word in words] for text in texts]
        np.testing.assert_allclose(sums, wanted, atol=2e-4)
        assert counts.tolist() == [[len(tokenizer.encode(word).ids) for word in words]] * len(texts)


def test_the_protocol_predicts_what_the_likelihoods_of_transformers_say(made):
    directory, peer, tokenizer = made
    evaluation = task_of(
        directory, f"in_context(shots=(0, 2), seeds=2, template={TEMPLATE!r})", mesh={"data": 2, "rest": -1}
    )
    task = evaluation.task
    (found,) = next(iter(evaluation.runs.values()))()
    rows, texts, labels = prompts.labelled(task), task.dataset.inputs, task.dataset.labels
    classes = task.dataset.classes

    def shown(row, label=True):
        return f"{texts[np.array([row])][0]}\nTopic:" + (f" {classes[labels[row]]}\n\n" if label else "")

    def accuracies(shots, seed):
        start = "".join(map(shown, rows[in_context.examples(labels[rows], 3, shots, seed)]))
        ends = [*(shown(row, False) for row in task.test), *(f"{x}\nTopic:" for x in in_context.CONTENT_FREE)]
        scores = np.array([[by_peer(peer, tokenizer, start + x, f" {name}") for name in classes] for x in ends])
        p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        own, free = p[: len(task.test)], p[len(task.test) :].mean(0)
        return [np.mean(x.argmax(1) == labels[task.test]) for x in (own, own / free)]

    zero, two = accuracies(0, 0), np.mean([accuracies(2, seed) for seed in (0, 1)], axis=0)
    for name, wanted in zip(("accuracy", "calibrated accuracy"), zip(zero, two, strict=True), strict=True):
        assert [found["metrics"][f"{name} at {k} shots"] for k in (0, 2)] == pytest.approx(wanted)
    assert found["metrics"]["half of the 95% interval of accuracy at 2 shots"] is not None


def test_calibration_is_that_of_hand_computed_probabilities():
    scores = np.log([[0.6, 0.3], [0.5, 0.5]])  # scaled to 2/3 and 1/3, and to halves
    free = np.log([[0.8, 0.2], [0.4, 0.1]])  # both are 0.8 and 0.2
    np.testing.assert_allclose(in_context.calibrated(scores, free), [[5 / 6, 5 / 3], [5 / 8, 5 / 2]])


def test_what_is_compared_is_the_sum_the_mean_or_the_pmi():
    sums, counts, base = np.array([[-4.0, -3.0]]), np.array([[4, 1]]), np.array([-5.0, -1.0])
    assert in_context.compared(sums, counts, "sum").argmax() == 1
    assert in_context.compared(sums, counts, "mean").tolist() == [[-1.0, -3.0]]
    assert in_context.compared(sums, counts, "pmi", base).tolist() == [[1.0, -2.0]]


def test_the_examples_of_a_prompt_are_the_rows_that_few_shot_heads_learn_from():
    labels = np.arange(60) % 3
    for seed in (0, 1):
        own = in_context.examples(labels, 3, 6, seed)
        (drawn,) = draws.draws(labels, (2,), (seed,), classes=3)[0][0]
        assert sorted(own) == sorted(drawn)
        assert sorted(labels[own[:3]]) == sorted(labels[own[3:]]) == [0, 1, 2]
        assert own[:4].tolist() == in_context.examples(labels, 3, 4, seed).tolist()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            "shots=(0, 40)",
            r"a prompt of 40 shots of .* takes up to \d{3,} tokens, and the model has 96 positions; \d sh",
        ),
        ("template='{text} {title} {label}'", "unknown place {title}; a row has one text"),
        ("template='{label} {text}'", "expected {text} and then one {label}, found"),
        ("words=('a', 'b')", "there are 2 words for 3 classes"),
        ("words=('a', 'a', 'b')", "the word 'a' stands for two classes"),
        ("score='max'", "expected one of 'sum', 'mean', 'pmi'"),
    ],
)
def test_a_prompt_that_cannot_be_is_one_line_before_anything_is_compiled(made, options, said):
    with pytest.raises(InputError, match=said) as error:
        task_of(made[0], f"in_context({options})")
    assert "\n" not in str(error.value)


def test_the_number_of_shots_that_is_said_to_fit_fits_and_one_more_does_not(made):
    directory, *_ = made
    with pytest.raises(InputError) as error:
        task_of(directory, "in_context(shots=(40,), seeds=2)")
    fits = int(str(error.value).split("positions; ")[1].split()[0])
    task_of(directory, f"in_context(shots=({fits},), seeds=2)")
    with pytest.raises(InputError, match=f"; {fits} shots fit"):
        task_of(directory, f"in_context(shots=({fits + 1},), seeds=2)")


def test_shots_of_more_rows_than_a_class_has_are_refused_with_the_most_there_are(made):
    with pytest.raises(InputError, match="has [0-9]+ labelled ones; expected shots of at most [0-9]+$") as error:
        task_of(made[0], "in_context(shots=(1000,))")
    most = int(str(error.value).split()[-1])
    with pytest.raises(InputError, match=f"expected shots of at most {most}$"):
        task_of(made[0], f"in_context(shots=({most + 1},))")
    with pytest.raises(InputError, match=f"a prompt of {most} shots .* takes up to [0-9]+ tokens"):
        task_of(made[0], f"in_context(shots=({most},))")


def test_texts_are_cut_to_the_tokens_of_the_config(made):
    directory, _, tokenizer = made
    task = task_of(directory, "in_context(shots=(2,), seeds=1)", load={"tokens": 3}).task
    asking = prompts._checked(task, TEMPLATE, ())
    text = "oil goal bank vote team"
    (prompt,), cut = asking.prompts([text])
    assert prompt == tokenizer.decode(tokenizer.encode(text).ids[:3]) + "\nTopic:" and cut.tolist() == [True]


def test_a_backbone_without_a_head_of_language_modelling_is_refused(made, tmp_path):
    directory, peer, _ = made
    peer.transformer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((directory / "tokenizer.json").read_bytes())
    dataset = f"table:{directory}/rows.jsonl"
    with pytest.raises(InputError, match="in_context: backbone .* has no head; expected one that predicts the next"):
        task_of(tmp_path, "in_context", data=dataset)
    assert sources.load(dataset, "").kind == "text" and "in_context" in protocols.PROTOCOLS
