"""Random changes of images: what they do to pixels, what they draw, and that draws follow from seed and place alone."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from jtransfer import imports
from jtransfer.data import augment, policies
from jtransfer.data.augment import Augmented, parse
from jtransfer.data.policies import IMAGENET, OPERATIONS, SIGNED, AutoAugment, RandAug, RandAugment, amount
from jtransfer.errors import InputError


@pytest.fixture(scope="module")
def picture():
    """Colours and edges: `[41, 60, 3]`."""
    y, x = np.mgrid[:41, :60]
    channels = [(x * 4) % 256, (y * 6 + 40 * (x // 10)) % 256, (x * y) % 256]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


class Fixed:
    """A generator whose draws are given."""

    def __init__(self, *values):
        self.values = list(values)

    def random(self):
        return self.values.pop(0)

    def uniform(self, low=0.0, high=1.0):
        return low + (high - low) * self.values.pop(0)

    def integers(self, most):
        return min(int(self.values.pop(0) * most), most - 1)


def test_a_shear_moves_each_row_by_its_share(picture):
    sheared = pixels(OPERATIONS["ShearX"](picture, 0.5))
    np.testing.assert_array_equal(sheared[0], pixels(picture)[0])
    np.testing.assert_array_equal(sheared[20, :40], pixels(picture)[20, 10:50])


def test_a_translation_is_by_whole_pixels_and_leaves_black(picture):
    moved = pixels(OPERATIONS["TranslateX"](picture, 7.9))
    np.testing.assert_array_equal(moved[:, 7:], pixels(picture)[:, :-7])
    assert not moved[:, :7].any()
    up = pixels(OPERATIONS["TranslateY"](picture, -3))
    np.testing.assert_array_equal(up[:-3], pixels(picture)[3:])


def test_a_quarter_turn_is_a_quarter_turn():
    square = Image.fromarray(np.arange(5 * 5 * 3, dtype=np.uint8).reshape(5, 5, 3))
    np.testing.assert_array_equal(pixels(OPERATIONS["Rotate"](square, 90)), np.rot90(pixels(square)))


@pytest.mark.parametrize(
    ("name", "level", "expected"),
    [
        ("Rotate", 0.5, 15.0),
        ("ShearX", 1 / 3, 0.1),
        ("TranslateX", 1, 150 / 331 * 60),
        ("TranslateY", 1, 150 / 331 * 41),
        ("Brightness", 1, 0.9),
        ("Posterize", 1, 4),
        ("Posterize", 0, 8),
        ("Solarize", 1 / 3, 170),
        ("Equalize", 1, 0),
    ],
)
def test_amounts_at_a_level(name, level, expected):
    assert amount(name, level, (60, 41)) == pytest.approx(expected, abs=0 if name == "Solarize" else 1e-9)


def test_hue_goes_round_the_circle_of_colours(picture):
    """In 255 steps of 256, as torchvision does, so that a third back is 171 and not 170."""
    red = Image.new("RGB", (1, 1), (255, 0, 0))
    assert [augment.hue(red, share).getpixel((0, 0)) for share in (1 / 3, -1 / 3)] == [(0, 255, 0), (6, 0, 255)]
    grey = picture.convert("L")
    assert augment.hue(grey, 0.3) is grey


def test_a_part_has_the_share_and_the_ratio_that_are_drawn():
    crop = augment.RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    assert crop.box(40, 40, Fixed(0, 0, 0.999, 0.0)) == (20, 0, 20, 20)
    # What never fits is cut out of the middle, within the ratios.
    assert augment.RandomResizedCrop(8, scale=(1, 1)).box(100, 10, np.random.default_rng(0)) == (43, 0, 13, 10)


def test_parts_of_many_draws_have_the_shares_that_are_asked_for():
    """Against the formula: of parts that fit, shares are uniform; 200 x 200 pixels bind few of them."""
    draws, crop = np.random.default_rng(0), augment.RandomResizedCrop(8, scale=(0.1, 0.5))
    boxes = np.array([crop.box(200, 200, draws) for _ in range(4000)])
    shares, ratios = boxes[:, 2] * boxes[:, 3] / 200**2, boxes[:, 2] / boxes[:, 3]
    assert shares.mean() == pytest.approx(0.3, abs=0.01) and shares.std() == pytest.approx(0.4 / 12**0.5, abs=0.005)
    assert np.log(ratios).mean() == pytest.approx(0, abs=0.01) and abs(np.log(ratios)).max() < np.log(4 / 3) + 0.05
    assert (boxes[:, :2] + boxes[:, 2:] <= 200).all() and boxes[:, :2].min() == 0


def test_resize_small_keeps_the_aspect_ratio_and_random_crop_pads_with_black(picture):
    assert augment.ResizeSmall(20)(picture, None).size == (29, 20)
    part = pixels(augment.RandomCrop(60, padding=2)(picture, Fixed(0, 0)))
    assert part.shape == (60, 60, 3) and not part[:2].any() and not part[:, :2].any()
    np.testing.assert_array_equal(part[9:50, 2:], pixels(picture)[:, :58])


def test_flip_and_jitter_are_those_of_pillow(picture):
    np.testing.assert_array_equal(augment.Flip()(picture, Fixed(0.49)), ImageOps.mirror(picture))
    assert augment.Flip()(picture, Fixed(0.51)) is picture
    draws = Fixed(0.75)
    draws.permutation = lambda n: [3, 0, 1, 2]
    bright = augment.ColorJitter(brightness=0.4)(picture, draws)
    np.testing.assert_array_equal(bright, ImageEnhance.Brightness(picture).enhance(1.2))


def test_randaugment_draws_operations_and_signs(picture):
    """The ninth of fourteen is Contrast: at magnitude 10 of 30 a third of 0.9, taken off."""
    changed = RandAugment(1, 10)(picture, Fixed(8.5 / 14, 0.1))
    np.testing.assert_array_equal(changed, ImageEnhance.Contrast(picture).enhance(1 - 0.3))
    assert RandAugment(0)(picture, Fixed()) is picture


@pytest.mark.parametrize("magnitude", [0, 10, 15])
def test_big_visions_randaug_changes_values_as_its_operations_do(magnitude, picture):
    """On every value that a pixel may have, by the operations of its `pp/autoaugment.py`."""
    level, x = magnitude / 10, np.arange(256)
    image = Image.fromarray(np.stack([x.reshape(16, 16)] * 3, -1).astype(np.uint8))
    factor, shift = level * 1.8 + 0.1, 8 - int(level * 4)
    mean = np.float64(min(255, 16 * 16 // 256))
    expected = {
        "Invert": 255 - x,
        "Posterize": (x >> shift) << shift,
        "Solarize": np.where(x < int(level * 256), x, 255 - x),
        "SolarizeAdd": np.where(x < 128, np.clip(x + int(level * 110), 0, 255), x),
        "Brightness": np.clip(x * factor, 0, 255),
        "Contrast": np.clip(mean + factor * (x - mean), 0, 255),
        "Color": x,
    }
    for name, values in expected.items():
        found = pixels(RandAug(1, magnitude).done(name, image, Fixed()))[..., 0].reshape(-1)
        np.testing.assert_allclose(found, np.trunc(values), atol=1, err_msg=name)


def test_big_visions_randaug_moves_by_its_levels_and_leaves_grey(picture):
    array, policy = pixels(picture), RandAug(1, 1)
    to_the_left = pixels(policy.done("TranslateX", picture, Fixed(0.9)))
    np.testing.assert_array_equal(to_the_left[:, :50], array[:, 10:])
    assert (to_the_left[:, 50:] == 128).all()
    down = pixels(policy.done("TranslateY", picture, Fixed(0.1)))
    np.testing.assert_array_equal(down[10:], array[:31])
    cut = pixels(RandAug(1, 2).done("Cutout", picture, Fixed(0.5, 0.5)))
    inside = np.zeros((41, 60), bool)
    inside[20 - 8 : 20 + 8, 30 - 8 : 30 + 8] = True
    assert (cut[inside] == 128).all() and (cut[~inside] == array[~inside]).all()
    assert (pixels(RandAug(1, 10).done("Rotate", picture, Fixed(0.9)))[0, 0] == 128).all()


def test_big_visions_randaug_draws_from_sixteen_operations_and_takes_grey_images(picture):
    assert len(policies.NAMES) == len(set(policies.NAMES)) == 16
    image = picture.convert("L")
    for i, name in enumerate(policies.NAMES):
        draws = ((i + 0.5) / 16, *(0.7,) * 3)
        found = parse(["randaug(1, 10)"])[0](image, Fixed(*draws))
        assert found.mode == "L" and found.size == image.size, name
        expected = RandAug(1, 10).done(name, image, Fixed(*draws[1:]))
        np.testing.assert_array_equal(pixels(found), pixels(expected))


def test_autoaugment_does_the_pair_that_is_drawn_with_its_probabilities(picture):
    """The second pair: Solarize at 5 of 9 in six of ten cases, then AutoContrast in six of ten."""
    both = AutoAugment()(picture, Fixed(1.5 / 25, 0.59, 0.59))
    solarized = ImageOps.solarize(picture, 255 - 255 * 5 / 9)
    np.testing.assert_array_equal(both, ImageOps.autocontrast(solarized))
    np.testing.assert_array_equal(AutoAugment()(picture, Fixed(1.5 / 25, 0.59, 0.61)), solarized)
    assert len(IMAGENET) == 25 and {name for pair in IMAGENET for name, _, _ in pair} <= {*OPERATIONS}


def test_erasing_covers_a_box_of_the_share_that_is_drawn(picture):
    """Shares and ratios in the middle: 0.1766 of 41 x 60 pixels as a square, at the upper left."""
    erased = pixels(augment.Erase()(picture, Fixed(0.24, 0.5, 0.5, 0, 0)))
    box = (erased == (124, 116, 104)).all(-1)
    side = round((41 * 60 * (0.02 + 1 / 3) / 2) ** 0.5)
    assert box[:side, :side].all() and box.sum() == side**2
    np.testing.assert_array_equal(erased[~box], pixels(picture)[~box])
    assert augment.Erase()(picture, Fixed(0.26)) is picture


NAMES = (
    "random_crop(8, padding=2)",
    "flip",
    "color_jitter(0.4, 0.4, 0.4, 0.1)",
    "randaugment",
    "autoaugment",
    "erase(1.0)",
)


@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1)])
def test_draws_follow_from_the_seed_and_the_place_alone(shape):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.uint8)
    changed = Augmented(images, parse(NAMES), 3, np.arange(6) + 100)
    whole = changed[np.arange(6)]
    assert all(one.shape == shape and one.dtype == np.uint8 for one in whole)
    alone = Augmented(images[4:5], parse(NAMES), 3, np.array([104]))[np.arange(1)]
    np.testing.assert_array_equal(alone[0], whole[4])
    other = Augmented(images, parse(NAMES), 4, np.arange(6) + 100)[np.arange(6)]
    assert any((one != two).any() for one, two in zip(whole, other, strict=True))
    floats = Augmented(images / np.float32(255), parse(NAMES), 3, np.arange(6) + 100)[np.arange(6)]
    np.testing.assert_array_equal(floats, whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("randaugmen(2)", "did you mean 'randaugment'"),
        ("flip(2)", "probability of Flip: expected a number from 0 to 1, found 2"),
        ("random_resized_crop", "does not fit random_resized_crop(size"),
        ("color_jitter(hue=0.7)", "hue of ColorJitter: expected a number from 0 to 0.5"),
        ("random_resized_crop(8, resample='lanczos')", "resample of RandomResizedCrop"),
        ("random_resized_crop(8, scale=(0.5, 0.1))", "scale of RandomResizedCrop"),
    ],
)
def test_what_is_no_augmentation_is_refused_in_one_line(text, said):
    with pytest.raises(InputError) as raised:
        parse([text])
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_function_of_the_users_is_one_too(tmp_path, picture):
    (tmp_path / "my_images.py").write_text(
        "from PIL import ImageFilter\n\n"
        "def blur(radius=1):\n"
        "    return lambda image, draws: image.filter(ImageFilter.GaussianBlur(radius * draws.random()))\n\n"
        "def seven():\n    return 7\n"
    )
    with imports.beside(str(tmp_path)):
        (blur,) = parse(["my_images.blur(radius=2)"])
        expected = picture.filter(ImageFilter.GaussianBlur(1.0))
        np.testing.assert_array_equal(blur(picture, Fixed(0.5)), expected)
        with pytest.raises(InputError, match="my_images.seven"):
            parse(["my_images.seven"])


def test_operations_and_amounts_are_torchvisions(picture):
    torchvision = pytest.importorskip("torchvision", exc_type=Exception, reason="torchvision is not here")
    from torchvision.transforms import InterpolationMode, autoaugment, functional

    for space, levels in (
        (torchvision.transforms.RandAugment()._augmentation_space(31, (41, 60)), 30),
        (torchvision.transforms.AutoAugment()._augmentation_space(10, (41, 60)), 9),
    ):
        for name, (magnitudes, signed) in space.items():
            assert signed == (name in SIGNED)
            for level in range(levels + 1):
                theirs = float(magnitudes[level]) if magnitudes.ndim else 0.0
                assert amount(name, level / levels, picture.size) == pytest.approx(theirs, rel=1e-6, abs=1e-6)
                expected = autoaugment._apply_op(picture, name, theirs, InterpolationMode.NEAREST, None)
                np.testing.assert_array_equal(OPERATIONS[name](picture, theirs), expected, name)
    policies = torchvision.transforms.AutoAugment().policies
    assert [tuple((name, p, level or 0) for name, p, level in pair) for pair in policies] == [*IMAGENET]
    for share in (-0.5, -0.13, 0.2, 0.5):
        np.testing.assert_array_equal(augment.hue(picture, share), functional.adjust_hue(picture, share))
