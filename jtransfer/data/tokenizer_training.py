"""Tokenizers trained here by the `tokenizers` library, as the files that AutoTokenizer of transformers reads.

Training is deterministic: the files follow from the texts, their order and the recipe.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jtransfer import expressions
from jtransfer.data.tokenizer_bounds import MOST_WORDS
from jtransfer.kinds import whole

END, UNKNOWN = "<|endoftext|>", "[UNK]"
ENCODER = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
"""Special tokens of a model that reads texts as a whole, in the order of their ids, as BERT has them."""
DECODER = dict.fromkeys(("eos_token", "bos_token", "pad_token"), END)
"""Special tokens of a model that continues texts, as GPT-2 has them."""

BYTES = 256
MOST_CHARACTERS = 1000
"""Characters that pieces of words are made of, at most, and at most a quarter of the vocabulary: BERT has 997."""

OfTexts = Callable[[], Iterator[str]]
"""Gives the texts, each time anew."""
SIZE, LEAST, ROWS = whole(300, MOST_WORDS), whole(1, 2**31 - 1), whole(0, 2**31 - 1)


@dataclass(frozen=True)
class TokenizerRecipe:
    """How a tokenizer is made of texts.

    Attributes:
        train: From texts and special tokens, whose ids are 0, 1, ... in their order, to a tokenizer without ends.
        size: The most tokens that it has, the special ones among them; 0 where their number alone decides.
        rows: The most texts that it is trained on, spread over all; 0 for all.
        unknown: Whether there are words that it has no tokens for, which become `[UNK]`.
    """

    train: Callable[[OfTexts, Sequence[str]], Tokenizer]
    size: int
    rows: int = 0
    unknown: bool = True

    def special(self, generates: bool) -> dict[str, str]:
        """Special tokens by their keys in `tokenizer_config.json`; `generates` is whether the model continues texts."""
        if not generates:
            return ENCODER
        return DECODER | {"unk_token": UNKNOWN if self.unknown else END}


def wordpiece(
    size: Annotated[int, SIZE] = 8000,
    lower: bool = True,
    least: Annotated[int, LEAST] = 2,
    rows: Annotated[int, ROWS] = 0,
) -> TokenizerRecipe:
    """Pieces of words, `##` before those within a word (Schuster and Nakajima 2012, as in BERT).

    Args:
        size: The most tokens, the special ones among them.
        lower: Whether letters become small and lose their accents, as in BERT's uncased models.
        least: How often a pair of pieces comes at least to become one piece.
        rows: The most texts that it is trained on, spread over all; 0 for all.
    """

    def train(texts, special):
        normalizer = normalizers.BertNormalizer(lowercase=lower)
        counts = Counter(chain.from_iterable("".join(normalizer.normalize_str(text).split()) for text in texts()))
        common = sorted(counts, key=lambda character: (-counts[character], character))
        alphabet = sorted(common[: min(MOST_CHARACTERS, size // 4)])
        # The trainer numbers pieces within words as it meets them, in an order that is another in every process, unless
        # it knows them before; and the numbers decide between pairs that are equally frequent.
        pieces = [*alphabet, *(f"##{character}" for character in alphabet if _within_words(character))]
        trainer = trainers.WordPieceTrainer(
            vocab_size=size,
            min_frequency=least,
            special_tokens=[*special, *pieces],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix="##",
            show_progress=False,
        )
        trained = _trained(models.WordPiece(unk_token=UNKNOWN), normalizer, pre_tokenizers.BertPreTokenizer())
        trained.train_from_iterator(texts(), trainer)
        model = models.WordPiece(trained.get_vocab(), unk_token=UNKNOWN)  # whose pieces are none of them special
        found = _trained(model, normalizer, pre_tokenizers.BertPreTokenizer())
        found.decoder = decoders.WordPiece()
        return found

    return TokenizerRecipe(train, size, rows)


def bpe(
    size: Annotated[int, SIZE] = 8000, least: Annotated[int, LEAST] = 2, rows: Annotated[int, ROWS] = 0
) -> TokenizerRecipe:
    """Pairs of bytes, merged (Sennrich et al. 2016, arXiv:1508.07909, on bytes as in GPT-2): no text is unknown.

    Args:
        size: The most tokens, the 256 bytes and the special ones among them.
        least: How often a pair comes at least to become one token.
        rows: The most texts that it is trained on, spread over all; 0 for all.
    """

    def train(texts, special):
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=least,
            special_tokens=[*special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        found = _trained(models.BPE(), None, pre_tokenizers.ByteLevel(add_prefix_space=False))
        found.train_from_iterator(texts(), trainer)
        found.decoder = decoders.ByteLevel()
        return found

    return TokenizerRecipe(train, size, rows, unknown=False)


def one_byte() -> TokenizerRecipe:
    """One token for each byte; nothing is trained."""
    made = bpe()
    return TokenizerRecipe(lambda texts, special: made.train(lambda: iter(()), special), 0, unknown=False)


def words(
    size: Annotated[int, SIZE] = 20_000,
    least: Annotated[int, LEAST] = 2,
    lower: bool = False,
    spaces: bool = False,
    rows: Annotated[int, ROWS] = 0,
) -> TokenizerRecipe:
    """Whole words; all others are unknown.

    Args:
        size: The most tokens, the special ones among them.
        least: How often a word comes at least.
        lower: Whether letters become small.
        spaces: Whether white space alone ends a word, as of texts that were split before; else every mark of
            punctuation is a word too.
        rows: The most texts that it is trained on, spread over all; 0 for all.
    """

    def train(texts, special):
        trainer = trainers.WordLevelTrainer(
            vocab_size=size, min_frequency=least, special_tokens=[*special], show_progress=False
        )
        split = pre_tokenizers.WhitespaceSplit() if spaces else pre_tokenizers.BertPreTokenizer()
        found = _trained(models.WordLevel(unk_token=UNKNOWN), normalizers.Lowercase() if lower else None, split)
        found.train_from_iterator(texts(), trainer)
        return found

    return TokenizerRecipe(train, size, rows)


TOKENIZERS: dict[str, Callable[..., TokenizerRecipe]] = {
    "wordpiece": wordpiece,
    "bpe": bpe,
    "words": words,
    "bytes": one_byte,
}
"""What a config may name in place of a checkpoint's tokenizer."""


def parse(text: str) -> TokenizerRecipe | None:
    """A recipe as a config writes it, `wordpiece(size=8000)`; None for the name of a checkpoint or a file.

    Raises:
        InputError: a call of what is no recipe, or options that do not fit.
    """
    named = re.match(r"\s*(\w+)\s*(\(|$)", text)
    if not named or (named[1] not in TOKENIZERS and not named[2]):
        return None
    return expressions.call(expressions.parse(text, "tokenizer"), text, "tokenizer", TOKENIZERS)()


def files(
    recipe: TokenizerRecipe, texts: OfTexts, generates: bool, names: Iterable[str], longest: int
) -> dict[str, bytes]:
    """Train a tokenizer.

    Args:
        recipe: How.
        texts: That it is trained on.
        generates: Whether the model continues texts. If it does not, `[CLS]` and `[SEP]` stand around a text and
            between two.
        names: Of the model's inputs.
        longest: The most tokens that the model has positions for.

    Returns:
        `tokenizer.json` and `tokenizer_config.json`, by name.
    """
    special = recipe.special(generates)
    found = recipe.train(texts, list(dict.fromkeys(special.values())))
    found.add_special_tokens(list(dict.fromkeys(special.values())))
    # Offsets without the space before a word.
    steps = [processors.ByteLevel(trim_offsets=True)] if isinstance(found.model, models.BPE) else []
    if not generates:
        cls, sep = special["cls_token"], special["sep_token"]
        ends = [(token, found.token_to_id(token)) for token in (cls, sep)]
        form = {"single": f"{cls} $A {sep}", "pair": f"{cls} $A {sep} $B:1 {sep}:1"}
        steps.append(processors.TemplateProcessing(**form, special_tokens=ends))
    if steps:
        found.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "model_max_length": longest}
    settings |= {"model_input_names": [name for name in INPUTS if name in names], "padding_side": "right"}
    settings |= {"clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": found.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def blank(recipe: TokenizerRecipe, special: Sequence[str]) -> Tokenizer:
    """A tokenizer with as many tokens as a recipe gives at most, made of no text: to compile a model for them."""
    if not recipe.size:
        return recipe.train(lambda: iter(()), special)
    known = [*special, *map(str, range(recipe.size - len(special)))]
    return Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token=special[0]))


def _trained(model, normalizer, splitter):
    found = Tokenizer(model)
    if normalizer is not None:
        found.normalizer = normalizer
    found.pre_tokenizer = splitter
    return found


def _within_words(character):
    """Whether a character can stand behind another within a word, as BERT splits texts."""
    return len(pre_tokenizers.BertPreTokenizer().pre_tokenize_str(f"a{character}")) == 1
