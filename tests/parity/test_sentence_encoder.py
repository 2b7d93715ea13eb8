"""Sentence encoders: the embeddings of a real one, and the ways in which a directory says how it pools."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import jtransfer as jt
from jtransfer.checkpoints.families import FAMILIES
from jtransfer.errors import InputError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHARED = Path(__file__).parents[3] / "shared"
MINILM = SHARED / "checkpoints" / "all-MiniLM-L6-v2"
CLOSE = {"atol": 1e-4, "rtol": 0}
SENTENCES, TOKENS = 200, 64


@pytest.fixture(scope="module")
def sentences():
    """200 sentences of the news, or where that cannot be read, the longer lines of the documents beside it."""
    try:
        import tensorflow_datasets as tfds

        news = tfds.data_source("ag_news_subset", data_dir=SHARED / "tfds", split="test", download=False)
        return [news[i]["description"].decode() for i in range(SENTENCES)]
    except ImportError:
        text = "\n".join(path.read_text() for path in sorted(SHARED.glob("*.md")))
        return [line for line in re.split(r"(?<=[.:;])\s|\n", text) if len(line) > 15][:SENTENCES]


@pytest.fixture(scope="module")
def tokens(sentences):
    """Padded at the right to 64, most of them with padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MINILM)
    assert len(sentences) == SENTENCES
    batch = tokenizer(sentences, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="np")
    assert 0.2 < batch["attention_mask"].mean() < 0.9
    return dict(batch)


def pooled(states, mask, pool):
    """As sentence-transformers does it: the mean over the mask, or the first token."""
    if pool == "cls":
        return states[:, 0]
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


@pytest.mark.skipif(not MINILM.exists(), reason=f"the real encoder is not in {MINILM}")
def test_the_embeddings_of_200_sentences_by_minilm_are_those_of_transformers_with_mean_pooling(tokens):
    backbone = jt.load(str(MINILM))
    assert (backbone.config.pool, backbone.config.normalize, backbone.config.depth) == ("mean", True, 6)
    outputs = backbone(tokens)
    peer = transformers.AutoModel.from_pretrained(MINILM, dtype=torch.float32).eval()
    theirs = {name: torch.from_numpy(x) for name, x in tokens.items()}
    with torch.no_grad():
        mean = pooled(peer(**theirs).last_hidden_state, theirs["attention_mask"], "mean")
    np.testing.assert_allclose(outputs["features"], mean, **CLOSE)
    np.testing.assert_allclose(outputs["sentence_embedding"], torch.nn.functional.normalize(mean), **CLOSE)


@pytest.mark.skipif(not MINILM.exists(), reason=f"the real encoder is not in {MINILM}")
def test_minilm_out_and_in_again_is_exact_to_the_bit():
    backbone = jt.load(str(MINILM), param_dtype="float16", sharding="host")
    written = FAMILIES["bert"].names(backbone.config, "").write(backbone.params)
    found = jt.checkpoints.tensors.read_directory(MINILM)
    assert found.keys() - written.keys() == {"embeddings.position_ids"}
    assert all(x.tobytes() == found[name].read().tobytes() for name, x in written.items())


def encoder(directory, pooling, *more, model=None):
    """A small sentence encoder of transformers with the files of sentence-transformers beside it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 31, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 20, "max_position_embeddings": 16}
    peer = (model or transformers.RobertaModel)(transformers.RobertaConfig(**sizes)).eval()
    peer.save_pretrained(directory)
    kinds = ["Transformer", "Pooling", *more]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 12} | pooling))
    return peer


def flags(**on):
    """The config of a pooling as it has been written for years."""
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    return {f"pooling_mode_{mode}": on.get(mode, False) for mode in modes} | {"include_prompt": True}


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [(flags(cls_token=True), "cls"), (flags(mean_tokens=True), "mean"), ({"pooling_mode": "mean"}, "mean")],
    ids=["flags-cls", "flags-mean", "name-mean"],
)
@pytest.mark.parametrize("more", [(), ("Normalize",)], ids=["plain", "normalized"])
def test_a_directory_pools_and_normalizes_as_its_modules_say(tmp_path, pooling, pool, more):
    peer = encoder(tmp_path, pooling, *more)
    ids = np.random.default_rng(0).integers(2, 31, (3, 7))
    mask = (np.arange(7) < np.array([[7], [4], [1]])).astype(int)
    ids = np.where(mask, ids, 1)
    outputs = jt.load(str(tmp_path))({"input_ids": ids, "attention_mask": mask})
    states = peer(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state.detach()
    expected = pooled(states, torch.from_numpy(mask), pool)
    np.testing.assert_allclose(outputs["features"], expected, **CLOSE)
    unit = torch.nn.functional.normalize(expected) if more else expected
    np.testing.assert_allclose(outputs["sentence_embedding"], unit, **CLOSE)


def test_without_a_mask_the_mean_is_over_all_tokens(tmp_path):
    encoder(tmp_path, flags(mean_tokens=True))
    outputs = jt.load(str(tmp_path))({"input_ids": np.arange(2, 14).reshape(2, 6)})
    np.testing.assert_allclose(outputs["features"], outputs["last_hidden_state"].mean(1), atol=1e-6)


def test_a_sentence_encoder_has_no_head_although_its_config_names_the_model_that_it_grew_from(tmp_path, caplog):
    encoder(tmp_path, flags(mean_tokens=True))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["RobertaForMaskedLM"]}))
    backbone = jt.load(str(tmp_path))
    assert backbone.head is None and backbone.fresh == () and not caplog.records


def test_what_is_written_of_it_is_read_by_transformers_and_pools_the_same_when_read_again(tmp_path):
    from safetensors.numpy import save_file

    peer = encoder(tmp_path, flags(mean_tokens=True), "Normalize")
    backbone, again = jt.load(str(tmp_path)), tmp_path / "again"
    again.mkdir()
    names = FAMILIES["roberta"].names(backbone.config, "")
    save_file(names.write(backbone.params), again / "model.safetensors", {"format": "pt"})
    (again / "config.json").write_text(json.dumps(FAMILIES["roberta"].write(backbone.config)))
    assert jt.load(str(again)).config == backbone.config
    ids = torch.arange(2, 14).reshape(2, 6)
    theirs = transformers.AutoModel.from_pretrained(again).eval()(ids).last_hidden_state
    np.testing.assert_array_equal(theirs.detach(), peer(ids).last_hidden_state.detach())


@pytest.mark.parametrize(
    ("pooling", "more", "message"),
    [
        (flags(max_tokens=True), (), "the pooling 'max_tokens' is not supported"),
        (flags(mean_sqrt_len_tokens=True), (), "the pooling 'mean_sqrt_len_tokens' is not supported"),
        (flags(cls_token=True, mean_tokens=True), (), r"the pooling 'cls_token\+mean_tokens' is not supported"),
        (flags(mean_tokens=True), ("Dense",), "the module 'Dense' is not supported; choose one of Dropout, Normalize"),
        (flags(), (), "expected a list of modules"),
    ],
)
def test_what_a_directory_asks_for_and_is_not_supported_is_named(tmp_path, pooling, more, message):
    encoder(tmp_path, pooling, *more)
    with pytest.raises(InputError, match=f"modules.json: {message}"):
        jt.load(str(tmp_path))


@pytest.mark.parametrize(
    "modules", ["{", "7", '{"a": 1}', "[1]", '[{"type": "Pooling"}]', '[{"type": "Pooling", "path": "../1_Pooling"}]']
)
def test_damaged_modules_are_one_line(tmp_path, modules):
    encoder(tmp_path, flags(mean_tokens=True))
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(InputError, match=r"modules\.json: expected a list of modules with type, path") as error:
        jt.load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_modules_that_pool_nothing_change_nothing(tmp_path):
    encoder(tmp_path, flags(mean_tokens=True))
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.CLIPModel", "path": ""}]')
    outputs = jt.load(str(tmp_path))({"input_ids": np.ones((1, 3), int)})
    assert "sentence_embedding" not in outputs
    np.testing.assert_array_equal(outputs["features"], outputs["pooler_output"])


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Red", "red", "query", "cat", "cats", "dog", "The", "the", ":"]


def worded(directory, **files):
    """A small cased BERT as a sentence encoder, with more files beside it."""
    torch.manual_seed(1)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(intermediate_size=20, max_position_embeddings=32, **sizes)
    encoder(directory, flags(mean_tokens=True))
    peer = transformers.BertModel(config).eval()
    peer.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    files = {"tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": False}} | files
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    return peer


def by_hand(peer, ids):
    return peer(torch.tensor([ids])).last_hidden_state.detach().mean(1)[0]


PROMPTS = {"prompts": {"query": "query : ", "passage": "dog "}, "default_prompt_name": "query"}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "[CLS] The Red cats [SEP]"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "[CLS] the red cats [SEP]"),
        ({"sentence_roberta_config": {"do_lower_case": True}}, "[CLS] the red cats [SEP]"),
        ({"sentence_bert_config": {"max_seq_length": 4}}, "[CLS] The Red [SEP]"),
        ({"config_sentence_transformers": PROMPTS}, "[CLS] query : The Red cats [SEP]"),
        ({"config_sentence_transformers": PROMPTS | {"default_prompt_name": None}}, "[CLS] The Red cats [SEP]"),
        (
            {"config_sentence_transformers": PROMPTS, "sentence_bert_config": {"do_lower_case": True}},
            "[CLS] query : the red cats [SEP]",
        ),
    ],
    ids=["plain", "lower", "lower-older-name", "length", "prompt", "no-default", "prompt-lower"],
)
def test_texts_become_the_tokens_that_sentence_transformers_makes_of_them(tmp_path, files, words):
    peer = worded(tmp_path, **files)
    backbone = jt.load(str(tmp_path))
    ids = [WORDS.index(word) for word in words.split()]
    inputs = backbone.preprocess(["The Red cats"])
    assert inputs["input_ids"][0][inputs["attention_mask"][0] == 1].tolist() == ids
    np.testing.assert_allclose(backbone(inputs)["sentence_embedding"][0], by_hand(peer, ids), **CLOSE)
    peers = pytest.importorskip("sentence_transformers")
    theirs = peers.SentenceTransformer(str(tmp_path), device="cpu").encode(["The Red cats"])[0]
    np.testing.assert_allclose(backbone(inputs)["sentence_embedding"][0], theirs, **CLOSE)


def test_the_length_of_the_sentence_encoder_goes_before_that_of_the_tokenizer(tmp_path):
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 5}
    worded(tmp_path, tokenizer_config=settings, sentence_bert_config={"max_seq_length": 20})
    assert jt.load(str(tmp_path)).preprocess(["cat " * 30])["attention_mask"].sum() == 20
    (tmp_path / "sentence_bert_config.json").write_text("{}")
    assert jt.load(str(tmp_path)).preprocess(["cat " * 30])["attention_mask"].sum() == 5


def test_a_prompt_is_named_and_the_first_text_of_a_pair_has_it(tmp_path):
    worded(tmp_path, config_sentence_transformers=PROMPTS)
    read = jt.load(str(tmp_path)).preprocess
    tokens = lambda **more: [WORDS[i] for i in read(["cat"], **more)["input_ids"][0] if i]  # noqa: E731
    assert tokens(prompt="passage") == ["[CLS]", "dog", "cat", "[SEP]"]
    assert tokens(prompt="document") == tokens(prompt="") == ["[CLS]", "cat", "[SEP]"]
    assert tokens(pairs=["dog"]) == ["[CLS]", "query", ":", "cat", "[SEP]", "dog", "[SEP]"]
    with pytest.raises(InputError, match="unknown prompt 'passages'; did you mean 'passage'"):
        read(["cat"], prompt="passages")


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config_sentence_transformers", {"truncate_dim": 6}, "truncate_dim is 6, which is not done here"),
        ("config_sentence_transformers", PROMPTS | {"default_prompt_name": "q"}, "default_prompt_name is 'q'; "),
        ("config_sentence_transformers", {"prompts": ["query: "]}, "prompts: expected texts of at most"),
        ("sentence_bert_config", {"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ("sentence_bert_config", {"do_lower_case": "yes"}, "do_lower_case is 'yes'"),
        ("sentence_bert_config", {"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask', which is not"),
        ("sentence_bert_config", {"processing_kwargs": {"text": {"max_length": 4}}}, "processing_kwargs is "),
        ("sentence_bert_config", {"tokenizer_args": {"do_lower_case": True}}, "tokenizer_args is "),
        ("1_Pooling/config", flags(mean_tokens=True) | {"include_prompt": False}, "include_prompt is false"),
        ("2_Normalize/config", {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings'"),
    ],
)
def test_a_key_that_changes_the_embedding_and_is_not_done_is_refused_by_its_name(tmp_path, file, values, message):
    worded(tmp_path, config_sentence_transformers=PROMPTS)
    (tmp_path / "2_Normalize").mkdir()
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"})
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    jt.load(str(tmp_path))
    (tmp_path / f"{file}.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=re.escape(f"{file}.json: {message}")) as error:
        jt.load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["Pooling", "Transformer"], "the order Pooling, Transformer is not supported"),
        (["Transformer", "Normalize", "Pooling"], "the order Transformer, Normalize, Pooling is not supported"),
        (["Transformer", "Pooling", "Pooling"], "the order Transformer, Pooling, Pooling is not supported"),
        (["Transformer", "Pooling", "LayerNorm"], "the module 'LayerNorm' is not supported"),
        (["Transformer", "Pooling", "CNN"], "the module 'CNN' is not supported"),
        (["custom_st.Transformer", "Pooling"], "the module 'custom_st.Transformer' is code of the checkpoint's own"),
    ],
)
def test_modules_in_another_order_or_of_another_kind_are_refused_by_name(tmp_path, types, message):
    worded(tmp_path)
    paths = {"Pooling": "1_Pooling"}
    listed = [{"type": x if "." in x else f"sentence_transformers.models.{x}", "path": paths.get(x, "")} for x in types]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match=re.escape(f"modules.json: {message}")):
        jt.load(str(tmp_path))


def test_a_transformer_in_a_directory_of_its_own_is_not_read_from_beside_it(tmp_path):
    worded(tmp_path)
    listed = json.loads((tmp_path / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(InputError, match="the Transformer is in '0_Transformer'"):
        jt.load(str(tmp_path))


def test_a_newer_name_of_the_pooling_goes_before_the_older_flags_and_dropout_does_nothing(tmp_path):
    encoder(tmp_path, flags(mean_tokens=True) | {"pooling_mode": ["cls"]}, "Dropout")
    assert jt.load(str(tmp_path)).config.pool == "cls"


def test_padding_is_on_the_right_for_bert_whatever_the_file_says_as_its_positions_count_it(tmp_path):
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "padding_side": "left"}
    peer = worded(tmp_path, tokenizer_config=settings)
    backbone = jt.load(str(tmp_path))
    embedding = backbone(backbone.preprocess(["The cat", "The Red cats"]))["sentence_embedding"]
    ids = [WORDS.index(word) for word in ("[CLS]", "The", "cat", "[SEP]")]
    np.testing.assert_allclose(embedding[0], by_hand(peer, ids), **CLOSE)
