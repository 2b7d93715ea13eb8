"""Preprocessing is that of transformers: the same files in, the same pixels and the same ids out, to the bit."""

import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import jtransfer as jt
from jtransfer.checkpoints.layouts import Origin
from jtransfer.data import images, preprocess
from jtransfer.models import Architecture, ViTConfig

transformers = pytest.importorskip("transformers")
samples = pytest.importorskip("sklearn.datasets")

SHARED = Path(__file__).parents[3] / "shared"
MINILM = SHARED / "checkpoints" / "all-MiniLM-L6-v2"
MERGES = SHARED / "clip" / "bpe_simple_vocab_16e6.txt.gz"

TOWER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 24}

minilm = pytest.mark.skipif(not MINILM.exists(), reason=f"{MINILM} is not there")


def config_of(**answers):
    """A config with these answers, and those of a model that has no more."""
    return type("Config", (Architecture,), answers)()


def of_images(directory, shape, model_type="vit"):
    """`preprocess` of a model that takes images of this shape."""
    config = config_of(inputs={"pixel_values": jax.ShapeDtypeStruct((1, *shape), np.float32)})
    return preprocess.of("mine", Origin(epath.Path(directory), {"model_type": model_type}, "huggingface"), config)


def of_texts(directory, values, longest=512, names=("input_ids", "attention_mask", "token_type_ids")):
    """`preprocess` of a model that takes texts of this length."""
    config = config_of(inputs=dict.fromkeys(names), longest=longest)
    return preprocess.of("mine", Origin(epath.Path(directory), values, "huggingface"), config)


def write(directory, **files):
    for name, values in files.items():
        (directory / f"{name}.json").write_text(json.dumps(values))
    return directory


@pytest.fixture(scope="module")
def photos():
    """The two photographs of scikit-learn (427x640), odd parts of them, tiny ones, an upright and a grey one."""
    china, flower = samples.load_sample_images().images
    parts = (china[3:260, 7:644], flower[100:333, 50:177], flower[:3, 200:205], china[50:51, 60:97])
    colour = [Image.fromarray(np.ascontiguousarray(x)) for x in (china, flower, *parts, china.transpose(1, 0, 2))]
    return [*colour, colour[0].convert("L").convert("RGB")]


@pytest.fixture(scope="module")
def odd(photos):
    """Grey, bilevel, palette with and without transparency, alpha, and CMYK, each as read back from a file."""
    china, flower = photos[:2]
    faded = flower.copy()
    faded.putalpha(china.convert("L").resize(flower.size))
    webbed = flower.quantize(30)
    kept = [(china.convert("L"), "PNG", {}), (china.convert("1"), "PNG", {}), (webbed, "PNG", {})]
    kept += [(webbed, "PNG", {"transparency": 3}), (faded, "PNG", {}), (faded.convert("LA"), "PNG", {})]
    kept += [(flower, "PNG", {"transparency": (0, 0, 0)}), (flower.convert("CMYK"), "TIFF", {})]
    read = []
    for image, kind, options in kept:
        file = io.BytesIO()
        image.save(file, kind, **options)
        read.append(Image.open(file))
    assert [image.mode for image in read] == ["L", "1", "P", "P", "RGBA", "LA", "RGB", "CMYK"]
    return read


SQUARE, UNEVEN = {"height": 32, "width": 32}, {"height": 45, "width": 31}
VALUES = {
    "vit": ({"image_processor_type": "ViTImageProcessor"}, (224, 224)),
    "vit fast": ({"image_processor_type": "ViTImageProcessorFast", "size": UNEVEN, "resample": 0}, (45, 31)),
    "vit old": ({"feature_extractor_type": "ViTFeatureExtractor", "size": 33, "resample": 3}, (33, 33)),
    "vit untyped": ({"size": [20, 50], "resample": 1, "image_std": [0.2, 0.3, 0.4]}, (20, 50)),
    "vit unscaled": ({"size": 32, "do_rescale": False}, (32, 32)),
    "vit rescaled": ({"size": 32, "rescale_factor": 1 / 127.5, "do_normalize": False}, (32, 32)),
    "vit raw": ({"size": 32, "do_rescale": False, "do_normalize": False}, (32, 32)),
    "vit flat": ({"size": 32, "image_mean": 0.3, "image_std": 0.7}, (32, 32)),
    "vit nulls": ({"size": 30, "crop_size": None, "do_normalize": None, "image_mean": None}, (30, 30)),
    "vit cropped": ({"do_resize": False, "do_center_crop": True, "crop_size": UNEVEN}, (45, 31)),
    "deit": ({"image_processor_type": "DeiTImageProcessor"}, (224, 224)),
    "deit odd": ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 41, "crop_size": UNEVEN}, (45, 31)),
    "deit uncropped": ({"image_processor_type": "DeiTImageProcessor", "do_center_crop": False}, (256, 256)),
    "bit": ({"image_processor_type": "BitImageProcessor"}, (224, 224)),
    "bit odd": ({"image_processor_type": "BitImageProcessor", "size": 51, "crop_size": 40, "resample": 2}, (40, 40)),
    "bit bounded": (
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 50, "longest_edge": 66},
            "crop_size": 60,
        },
        (60, 60),
    ),
    "clip": ({"image_processor_type": "CLIPImageProcessor"}, (224, 224)),
    "clip old": (
        {"feature_extractor_type": "CLIPFeatureExtractor", "size": 34, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3]},
        (32, 32),
    ),
    "clip square": ({"image_processor_type": "CLIPImageProcessor", "size": UNEVEN, "crop_size": SQUARE}, (32, 32)),
    "clip padded": ({"image_processor_type": "CLIPImageProcessor", "size": 20, "crop_size": 37}, (37, 37)),
    "siglip": ({"image_processor_type": "SiglipImageProcessor"}, (224, 224)),
    "siglip odd": ({"image_processor_type": "SiglipImageProcessor", "size": UNEVEN, "resample": 4}, (45, 31)),
    "convnext": ({"image_processor_type": "ConvNextImageProcessor"}, (384, 384)),
    "convnext old": ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 49, "crop_pct": 0.9}, (49, 49)),
    "convnext default": ({"image_processor_type": "ConvNextImageProcessor", "size": 224}, (224, 224)),
    "mobilenet": ({"image_processor_type": "MobileNetV2ImageProcessor"}, (224, 224)),
    "efficientnet without the head's division": (
        {"image_processor_type": "EfficientNetImageProcessor", "size": UNEVEN, "resample": 0, "include_top": False},
        (45, 31),
    ),
    "convnext cropped": (
        {
            "image_processor_type": "ConvNextImageProcessor",
            "size": {"shortest_edge": 50},
            "do_center_crop": True,
            "crop_size": 31,
        },
        (31, 31),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_pixels_are_those_of_transformers(name, photos, tmp_path):
    values, size = VALUES[name]
    write(tmp_path, preprocessor_config=values, config={"model_type": "vit"})
    peer = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = peer(photos, return_tensors="np", input_data_format="channels_last")["pixel_values"]
    ours = of_images(tmp_path, (*size, 3))(photos)["pixel_values"]
    assert ours.dtype == np.float32 and ours.shape == (len(photos), *size, 3)
    np.testing.assert_array_equal(ours, theirs.transpose(0, 2, 3, 1))


# DINOv3's has no backend of PIL, and stands in test_dinov3.py.
@pytest.mark.parametrize("kind", [kind for kind in images.TYPES if kind != "DINOv3ViTImageProcessor"])
def test_images_of_every_mode_become_colours_on_white_as_those_of_transformers(kind, odd, tmp_path):
    write(tmp_path, preprocessor_config={"image_processor_type": kind}, config={"model_type": "vit"})
    peer = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = peer(odd, do_convert_rgb=True, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    ours = of_images(tmp_path, theirs.shape[1:])(odd)["pixel_values"]
    if kind == "EfficientNetImageProcessor":  # divides twice, where we divide by the square
        np.testing.assert_allclose(ours, theirs, rtol=5e-7, atol=0)
    else:
        np.testing.assert_array_equal(ours, theirs)


MODEL_TYPES = ("vit", "vit_mae", "deit", "dinov2", "clip", "siglip", "resnet", "convnext", "mobilenet_v2", "swin")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_file_that_names_no_type_has_that_of_its_model(model_type, photos, tmp_path):
    square = model_type in ("vit", "vit_mae", "deit", "siglip", "swin")
    size = {"height": 40, "width": 40} if square else {"shortest_edge": 40}
    write(tmp_path, preprocessor_config={"size": size, "crop_size": 32}, config={"model_type": model_type})
    peer = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    theirs = peer(photos[:2], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    ours = of_images(tmp_path, theirs.shape[1:], model_type)(photos[:2])["pixel_values"]
    np.testing.assert_array_equal(ours, theirs)


def test_a_newer_processor_file_is_read_and_goes_before_an_older_one(photos, tmp_path):
    processor = transformers.CLIPImageProcessorPil(size=40, crop_size=36, image_mean=[0.1, 0.2, 0.3])
    both = transformers.CLIPProcessor(image_processor=processor, tokenizer=transformers.CLIPTokenizer())
    both.save_pretrained(tmp_path)
    assert "image_processor" in json.loads((tmp_path / "processor_config.json").read_text())
    write(tmp_path, preprocessor_config={"image_processor_type": "CLIPImageProcessor", "size": 99})
    theirs = processor(photos, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(of_images(tmp_path, (36, 36, 3))(photos)["pixel_values"], theirs)


def test_a_loaded_vision_transformer_sees_what_that_of_transformers_sees(photos, tmp_path):
    torch = pytest.importorskip("torch")
    peer = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **TOWER)).eval()
    peer.save_pretrained(tmp_path)
    backbone = jt.load(str(tmp_path))
    with pytest.raises(jt.InputError, match=r"preprocessor_config.json is not there"):
        backbone.preprocess(photos)
    transformers.ViTImageProcessorPil(size=32, image_mean=[0.2, 0.3, 0.4]).save_pretrained(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = peer(**processor(photos, return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(backbone(backbone.preprocess(photos))["logits"], theirs, atol=1e-4)


TEXTS = [
    "a photo of a dog",
    "",
    "   Two  spaces,\ttabs and\nlines ",
    "Résumé naïve Ünïcödé façade ÀÉÎ",
    "don't we'll they've I'm it's he'd",
    "1234567 3.14 $5 50% a_b-c/d",
    "東京 and 北京 are cities",
    "emoji 🙂🙃 and zero\u200bwidth \u0000 control",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "<|endoftext|> [MASK] [SEP] <s> <mask> in a text",
    "the model is loaded, the tokens are read, and the ids are those of the peer " * 3,
]
LONG = ["the ids are those of the peer " * 200, "short"]


def check_same(ours, theirs, **options):
    """Ids, mask and types of texts, of pairs and of long texts, padded to the same length."""
    for texts, pairs in ((TEXTS, None), (TEXTS, TEXTS[::-1]), (LONG, None), (LONG, LONG[::-1])):
        found = ours(texts, pairs)
        length = found["input_ids"].shape[1]
        expected = theirs(
            texts, pairs, truncation=True, max_length=length, padding="max_length", return_tensors="np", **options
        )
        assert found.keys() == expected.keys()
        for name, array in found.items():
            assert array.dtype == np.int32
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert (set(ours.special), ours.mask) == (set(theirs.all_special_ids), theirs.mask_token_id)
    assert ours.size == len(theirs)


def byte_level(directory, **settings):
    """A tiny byte-level BPE as GPT-2's, trained on the texts; `vocab.json` and `merges.txt` are in the directory."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = settings.pop("special", ["<|endoftext|>"])
    tokenizer.train_from_iterator(TEXTS[:5], vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(directory))
    write(directory, tokenizer_config=settings)


def clip_like(directory):
    """A tiny BPE as CLIP's, trained on the texts."""
    from tokenizers import trainers

    blank = transformers.CLIPTokenizer()
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = sorted(
        {c for text in map(chr, range(32, 127)) for c in blank.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    )
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        end_of_word_suffix="</w>",
        show_progress=False,
        initial_alphabet=[piece for piece, _ in alphabet],
    )
    blank.backend_tokenizer.train_from_iterator(TEXTS[:9], trainer)
    blank.backend_tokenizer.model.save(str(directory))


@minilm
def test_ids_masks_and_types_of_the_real_sentence_encoder_are_those_of_transformers():
    theirs = transformers.AutoTokenizer.from_pretrained(MINILM)
    backbone = jt.load(str(MINILM))
    check_same(backbone.preprocess, theirs)
    assert backbone.preprocess(LONG)["input_ids"].shape == (2, 256)  # of sentence_bert_config.json


@minilm
def test_the_vocabulary_alone_gives_the_ids_of_the_whole_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_bytes((MINILM / "vocab.txt").read_bytes())
    theirs = transformers.AutoTokenizer.from_pretrained(MINILM)
    check_same(of_texts(tmp_path, {"model_type": "bert"}, longest=256), theirs)


@minilm
@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"strip_accents": False}])
def test_what_the_tokenizer_config_says_of_case_and_accents_goes_before_the_file(settings, tmp_path):
    settings |= {"tokenizer_class": "BertTokenizer", "model_max_length": 64}
    (tmp_path / "tokenizer.json").write_bytes((MINILM / "tokenizer.json").read_bytes())
    write(tmp_path, tokenizer_config=settings, config={"model_type": "bert"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    check_same(of_texts(tmp_path, {"model_type": "bert"}), theirs)


@pytest.mark.parametrize("whole_file", [True, False], ids=["tokenizer.json", "vocab.json"])
def test_ids_of_a_byte_level_tokenizer_are_those_of_transformers(whole_file, tmp_path):
    byte_level(tmp_path, tokenizer_class="GPT2Tokenizer", model_max_length=64)
    write(tmp_path, config={"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if whole_file:
        theirs.save_pretrained(tmp_path)
    theirs.pad_token = theirs.eos_token
    ours = of_texts(tmp_path, {"model_type": "gpt2"}, names=("input_ids", "attention_mask", "position_ids"))
    check_same(ours, theirs)


@pytest.mark.parametrize("whole_file", [True, False], ids=["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("space", [True, False])
def test_ids_of_a_tokenizer_as_robertas_are_those_of_transformers(whole_file, space, tmp_path):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    byte_level(tmp_path, tokenizer_class="RobertaTokenizer", special=special, add_prefix_space=space)
    write(tmp_path, config={"model_type": "roberta"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if whole_file:
        theirs.save_pretrained(tmp_path)
    check_same(of_texts(tmp_path, {"model_type": "roberta"}, longest=40), theirs)


@pytest.mark.parametrize("whole_file", [True, False], ids=["tokenizer.json", "vocab.json"])
def test_ids_of_a_tokenizer_as_clips_are_those_of_transformers(whole_file, tmp_path):
    clip_like(tmp_path)
    write(tmp_path, config={"model_type": "clip"}, tokenizer_config={"tokenizer_class": "CLIPTokenizer"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if whole_file:
        theirs.save_pretrained(tmp_path)
    check_same(of_texts(tmp_path, {"model_type": "clip"}, longest=77), theirs)


@pytest.mark.skipif(not MERGES.exists(), reason=f"{MERGES} is not there")
def test_ids_of_openais_own_vocabulary_are_those_of_transformers(tmp_path):
    merges = gzip.decompress(MERGES.read_bytes()).decode().split("\n")[: 49152 - 256 - 2 + 1]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    words = [*characters, *(c + "</w>" for c in characters), *(merge.replace(" ", "") for merge in merges[1:])]
    words += ["<|startoftext|>", "<|endoftext|>"]
    assert len(words) == 49408
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges[1:]]) + "\n")
    write(tmp_path, vocab={word: i for i, word in enumerate(words)}, config={"model_type": "clip"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = of_texts(tmp_path, {"model_type": "clip"}, longest=77)
    check_same(ours, theirs)
    assert ours(["a photo of a dog"])["input_ids"][0, :7].tolist() == [49406, 320, 1125, 539, 320, 1929, 49407]


def test_padding_and_cutting_on_the_left_are_those_of_transformers(tmp_path):
    settings = {"padding_side": "left", "truncation_side": "left", "pad_token": "<|endoftext|>"}
    byte_level(tmp_path, tokenizer_class="GPT2Tokenizer", model_max_length=64, **settings)
    write(tmp_path, config={"model_type": "gpt2"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    check_same(of_texts(tmp_path, {"model_type": "gpt2"}), theirs)


def loaded(model, processor, directory):
    """What ours gives for photographs and texts, and what theirs gives, padded by each in its own way."""
    torch = pytest.importorskip("torch")
    model.eval().save_pretrained(directory)
    processor.save_pretrained(directory)
    backbone = jt.load(str(directory))

    def compare(photos, texts, padding):
        theirs = processor(text=texts, images=photos, return_tensors="pt", padding=padding, truncation=True)
        with torch.no_grad():
            expected = model(**theirs).logits_per_image.numpy()
        batch = backbone.preprocess(images=photos, text=texts)
        np.testing.assert_allclose(backbone(batch)["logits_per_image"], expected, atol=1e-4)
        return batch, theirs

    return compare


def test_a_loaded_clip_sees_and_reads_what_that_of_transformers_does(photos, tmp_path):
    clip_like(tmp_path)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.model_max_length = 40
    text = TOWER | {"vocab_size": len(tokenizer), "max_position_embeddings": 40, "eos_token_id": tokenizer.eos_token_id}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    images = transformers.CLIPImageProcessorPil(size=36, crop_size=32)
    compare = loaded(model, transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer), tmp_path)
    batch, theirs = compare(photos[:3], ["a photo of a dog", "a text"], padding=True)
    assert batch["input_ids"].shape == (2, 16) and theirs["input_ids"].shape[1] < 16


def test_siglip_reads_its_padding_up_to_the_last_token_and_no_mask(photos, tmp_path):
    words = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<mask>": 4, "▁": 5} | {
        chr(97 + i): 6 + i for i in range(26)
    }
    tokenizer = transformers.Siglip2Tokenizer(words, [], model_max_length=20, padding_side="right")
    text = TOWER | {"vocab_size": len(words), "max_position_embeddings": 20}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    tokenizer.model_input_names = ["input_ids"]
    processor = transformers.SiglipProcessor(image_processor=images, tokenizer=tokenizer)
    compare = loaded(transformers.SiglipModel(config), processor, tmp_path)
    batch, theirs = compare(photos[:3], ["A Photo", "a dog and a cat and a cow"], padding="max_length")
    np.testing.assert_array_equal(batch["input_ids"], theirs["input_ids"])
    assert batch.keys() == {"pixel_values", "input_ids"} and batch["input_ids"].shape == (2, 20)


def test_a_tokenizer_that_only_transformers_reads_is_read_by_it(tmp_path):
    write(tmp_path, tokenizer_config={"tokenizer_class": "ByT5Tokenizer"}, config={"model_type": "bert"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    check_same(of_texts(tmp_path, {"model_type": "bert"}, longest=64), theirs)


@minilm
def test_neither_torch_nor_transformers_is_imported(tmp_path):
    transformers.ViTImageProcessorPil(size=32).save_pretrained(tmp_path)
    program = f"""
import sys
import numpy as np
import jtransfer as jt
from etils import epath
from jtransfer.checkpoints.layouts import Origin
from jtransfer.data import preprocess
from jtransfer.models import ViTConfig

origin = Origin(epath.Path({str(tmp_path)!r}), {{"model_type": "vit"}}, "huggingface")
pixels = preprocess.of("vit", origin, ViTConfig(image=(32, 32)))([np.zeros((50, 40, 3), np.uint8)])["pixel_values"]
ids = jt.load({str(MINILM)!r}).preprocess(["a text"])["input_ids"]
assert pixels.shape == (1, 32, 32, 3) and ids.shape == (1, 16)
assert not {{"torch", "transformers", "torchvision", "tensorflow"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_a_resized_model_has_its_images_resized_and_cropped_in_proportion(photos, tmp_path):
    write(tmp_path, preprocessor_config={"image_processor_type": "BitImageProcessor", "size": 256, "crop_size": 224})
    peer = transformers.BitImageProcessorPil(size=438, crop_size=384)  # 256 * 384 / 224 = 438.9
    theirs = peer(photos[:2], return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    config = ViTConfig(image=(384, 384))
    ours = preprocess.of("mine", Origin(epath.Path(tmp_path), {}, "huggingface"), config)(photos[:2])["pixel_values"]
    np.testing.assert_array_equal(ours, theirs)


NEW = {"content": "<new>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
KINDS = {
    "bert": ({"tokenizer_class": "BertTokenizer"}, "bert"),
    "gpt2": ({"tokenizer_class": "GPT2Tokenizer", "pad_token": "<|endoftext|>"}, "gpt2"),
    "roberta": ({"tokenizer_class": "RobertaTokenizer"}, "roberta"),
    "clip": ({"tokenizer_class": "CLIPTokenizer"}, "clip"),
}
ADDED = [{"additional_special_tokens": ["<new>"]}, {"extra_special_tokens": {"new_token": "<new>"}}]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A small tokenizer of each kind, as vocabulary and as `tokenizer.json`."""
    made = {}
    for kind, (settings, model_type) in KINDS.items():
        plain = tmp_path_factory.mktemp(kind)
        if kind == "bert":
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", "photo", "the", "don"]
            (plain / "vocab.txt").write_text("\n".join([*words, *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz'")]))
        elif kind == "clip":
            clip_like(plain)
        else:
            byte_level(plain, special=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"])
        write(plain, tokenizer_config=settings, config={"model_type": model_type})
        whole = tmp_path_factory.mktemp(f"{kind}-whole")
        transformers.AutoTokenizer.from_pretrained(plain).save_pretrained(whole)
        for name in ("vocab.txt", "vocab.json", "merges.txt"):
            (whole / name).unlink(missing_ok=True)
        write(whole, config={"model_type": model_type})
        made[kind] = plain, whole
    return made


@pytest.mark.parametrize("whole", [False, True], ids=["vocabulary", "tokenizer.json"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {"unk_token": "a"}),
        ("bert", {"cls_token": "a", "sep_token": "b"}),
        ("bert", {"split_special_tokens": True}),
        ("bert", {"clean_up_tokenization_spaces": True}),
        ("bert", {"mask_token": "photo"}),
        ("bert", ADDED[0]),
        ("gpt2", {"add_bos_token": True, "add_eos_token": True}),
        ("gpt2", {"split_special_tokens": True}),
        ("gpt2", {"clean_up_tokenization_spaces": True}),
        ("gpt2", {"bos_token": "photo"}),
        ("gpt2", ADDED[1]),
        ("roberta", {"cls_token": "<mask>"}),
        ("roberta", {"truncation_side": "left"}),
        ("clip", ADDED[0]),
        ("clip", {"padding_side": "left", "model_max_length": 9}),
    ],
    ids=str,
)
def test_what_the_tokenizer_config_says_is_done_as_in_transformers(kind, settings, whole, kinds, tmp_path):
    """Values against those of transformers in the same test: ids, mask, types, and the texts that they become again."""
    for file in kinds[kind][whole].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer_config=said | settings)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    longest = min(64, settings.get("model_max_length", 64))
    names = ("input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else []))
    ours = of_texts(tmp_path, {"model_type": KINDS[kind][1]}, longest=longest, names=names)
    texts = [*TEXTS, "a <new> photo , isn't it", "photo photo"]
    for pairs in (None, texts[::-1]):
        found = ours(texts, pairs)
        length = found["input_ids"].shape[1]
        options = {"truncation": True, "max_length": length, "padding": "max_length", "return_tensors": "np"}
        expected = theirs(texts, pairs, **options)
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    rows = [row[kept == 1] for row, kept in zip(found["input_ids"], found["attention_mask"], strict=True)]
    assert ours.decode(rows) == theirs.batch_decode(rows, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_a_space_before_a_text_is_a_matter_of_the_config_and_not_of_the_whole_file(kind, kinds, tmp_path):
    for file in kinds[kind][1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["pre_tokenizer"]["add_prefix_space"] = True
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    write(tmp_path, tokenizer=whole, tokenizer_config={key: x for key, x in said.items() if key != "add_prefix_space"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = of_texts(tmp_path, {"model_type": KINDS[kind][1]}, longest=64, names=("input_ids",))
    assert [ids for ids, _, _ in ours.rows(TEXTS)] == theirs(TEXTS, truncation=True, max_length=64)["input_ids"]


def test_added_tokens_have_the_flags_and_numbers_that_the_config_gives_them(kinds, tmp_path):
    for file in kinds["gpt2"][0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    said = json.loads((tmp_path / "tokenizer_config.json").read_text())
    count = len(transformers.AutoTokenizer.from_pretrained(tmp_path))
    write(tmp_path, tokenizer_config=said | {"added_tokens_decoder": {str(count): NEW | {"lstrip": True}}})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = of_texts(tmp_path, {"model_type": "gpt2"}, longest=64, names=("input_ids", "attention_mask"))
    ids = theirs(["a photo <new> b"])["input_ids"][0]
    assert count in ids and ours(["a photo <new> b"])["input_ids"][0, : len(ids)].tolist() == ids
    write(tmp_path, tokenizer_config=said | {"added_tokens_decoder": {str(count + 3): NEW}})
    with pytest.raises(jt.InputError, match=f"tokenizer_config.json: '<new>' cannot be added as number {count + 3}"):
        of_texts(tmp_path, {"model_type": "gpt2"})


def test_the_sides_of_a_tokenizer_json_are_taken_where_the_config_says_nothing(kinds, tmp_path):
    for file in kinds["gpt2"][1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5}
    spec["padding"] |= {"pad_type_id": 0, "pad_token": "<|endoftext|>"}
    spec["truncation"] = {"direction": "Left", "max_length": 99, "strategy": "LongestFirst", "stride": 0}
    write(tmp_path, tokenizer=spec, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.padding_side, theirs.truncation_side) == ("left", "left")
    check_same(of_texts(tmp_path, {"model_type": "gpt2"}, longest=40, names=("input_ids", "attention_mask")), theirs)


def test_a_row_of_special_tokens_alone_is_an_empty_text_for_clip(kinds):
    """The library panics where it strips what is not there."""
    ours = of_texts(kinds["clip"][0], {"model_type": "clip"}, names=("input_ids", "attention_mask"))
    found = ours(["", "a photo"])
    assert ours.decode([row[kept == 1] for row, kept in zip(*found.values(), strict=True)]) == ["", "a photo"]
