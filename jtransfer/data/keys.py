"""Which keys of the files beside a checkpoint's weights are read, ignored or refused: as data, one table a file.

A key is read; or it is ignored, as it changes no number that is computed here; or it is refused, unless its value
changes nothing. A key that is in no table is logged by its name.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from etils import epath

from jtransfer import kinds
from jtransfer.errors import InputError
from jtransfer.kinds import Kind, shown

log = logging.getLogger("jtransfer")


FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "sentence_*_config.json",
    "config_sentence_transformers.json",
)
"""Files of a tokenizer, with the settings of sentence-transformers."""


@dataclass(frozen=True)
class Keys:
    """The keys of a file.

    Attributes:
        done: Patterns of the keys that are read, with spaces between them.
        idle: Patterns of the keys that change no number that is computed here, with spaces between them.
        only: For each other key, whether a value changes nothing; any other value is refused.
        kinds: By pattern, what the values of keys that are read must be; null is not checked.
    """

    done: str
    idle: str
    only: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)


def check(file: epath.Path, values: Mapping[str, Any], known: Keys) -> None:
    """Refuse values of the wrong kind and settings that are not supported; log the keys that are in no table.

    Args:
        file: For messages.
        values: Of the file.
        known: The table of the file.

    Raises:
        InputError: the error names the file, the key and its value.
    """
    for key, value in values.items():
        if value is not None and (kind := next((k for name, k in known.kinds.items() if fnmatchcase(key, name)), None)):
            kinds.check(value, kind, f"{file}: {key}")
        if key in known.only and not known.only[key](value):
            raise InputError(f"{file}: {key} is {shown(value)}, which is not done here; take it out to do without")
    patterns = (*known.done.split(), *known.idle.split(), *known.only)
    if unknown := sorted(key for key in values if not any(fnmatchcase(key, pattern) for pattern in patterns)):
        log.warning("%s: nothing is done for %s, which are not known here", file, ", ".join(unknown[:10]))


def among(*values: Any) -> Callable[[Any], bool]:
    """A test whether a value is one of these, or None."""
    return lambda value: value is None or value in values


def nothing(value: Any) -> bool:
    """Whether a value is empty, false, 0 or None."""
    return not value


LONGEST = 10_000
"""Characters of a token or a prompt."""

WORD = Kind(f"a text of at most {LONGEST:,} characters", lambda x: isinstance(x, str) and len(x) <= LONGEST)
TOKEN = Kind(
    "a token, or an object with its 'content'",
    lambda x: WORD.takes(x.get("content") if isinstance(x, dict) else x),
)
NUMBERED = Kind(
    "an object of tokens by their numbers",
    lambda x: (
        isinstance(x, dict)
        and all(len(key) < 10 and key.isdecimal() and TOKEN.takes(token) for key, token in x.items())
    ),
)
TOKENS_OF_OWN = Kind(
    "a list of tokens, or an object of them by name",
    lambda x: isinstance(x, dict | list) and all(map(TOKEN.takes, x.values() if isinstance(x, dict) else x)),
)
SIDE = kinds.choice("left", "right")
LENGTH = Kind("a number above 0", lambda x: type(x) in (int, float) and x > 0)

TOKENIZER = Keys(
    kinds={
        "tokenizer_class": WORD,
        **{f"{name}_token": TOKEN for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")},
        "*_token": Kind(TOKEN.expected, lambda x: not isinstance(x, str | dict) or TOKEN.takes(x)),
        "added_tokens_decoder": NUMBERED,
        **dict.fromkeys(("additional_special_tokens", "extra_special_tokens"), TOKENS_OF_OWN),
        **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"), kinds.FLAG),
        **dict.fromkeys(("clean_up_tokenization_spaces", "split_special_tokens"), kinds.FLAG),
        "model_max_length": LENGTH,
        **dict.fromkeys(("padding_side", "truncation_side"), SIDE),
        "model_input_names": Kind("a list with 'input_ids'", lambda x: isinstance(x, list) and "input_ids" in x),
        "auto_map": Kind("an object or a list", lambda x: isinstance(x, dict | list)),
        "clean": WORD,
        "extra_ids": kinds.whole(0, 10_000),
    },
    done="""tokenizer_class *_token added_tokens_decoder additional_special_tokens extra_special_tokens do_lower_case
        strip_accents tokenize_chinese_chars add_prefix_space clean_up_tokenization_spaces model_max_length padding_side
        truncation_side model_input_names split_special_tokens
        auto_map clean""",
    # What single calls of transformers take, or what it writes down; then what only its own classes read, which are
    # asked where there is no tokenizer.json.
    idle="""max_length stride truncation_strategy pad_to_multiple_of padding truncation return_* name_or_path *_file
        special_tokens_map* transformers_version processor_class image_token* use_fast from_slow is_local
        backend local_files_only init_inputs legacy verbose chat_template* response_template
        chat_control_tokens is_split_into_words use_default_system_* trust_remote_code device_map
        _commit_hash _name_or_path model_specific_* do_basic_tokenize never_split errors trim_offsets
        wordpieces_prefix clean_text do_split_* do_remove_* keep_accents sp_model_kwargs src_lang tgt_lang
        language task spaces_between_special_tokens add_dummy_prefix_space remove_space sep_style vocab_type
        vocab_size pad_token_* cls_token_* mask_token_* sep_token_* bos_token_* eos_token_* unk_token_*
        unk_id extra_ids normalization tokenizer_type fix_mistral_regex""",
)
"""Keys of `tokenizer_config.json` and `special_tokens_map.json`."""

PLAIN = {
    "attn_implementation",
    "torch_dtype",
    "dtype",
    "low_cpu_mem_usage",
    "device_map",
    "use_safetensors",
    "use_cache",
}
PLAIN |= {"trust_remote_code", "add_pooling_layer", "use_fast"}


def plain(value: Any) -> bool:
    """Whether keyword arguments for transformers change no number: there are none, or only keys in `PLAIN`."""
    return not value or (isinstance(value, Mapping) and not value.keys() - PLAIN)


TOKENS = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
ARGUMENTS = [f"{of}_{name}" for of in ("model", "processor", "tokenizer", "config") for name in ("args", "kwargs")]

SENTENCE_BERT = Keys(
    done="max_seq_length do_lower_case",
    idle="unpad_inputs query_length document_length query_expansion",  # of other calls than `encode`
    only={
        "transformer_task": among("feature-extraction"),
        "modality_config": among(TOKENS),
        "module_output_name": among("token_embeddings"),
        "processing_kwargs": nothing,
        "tokenizer_name_or_path": nothing,
        **dict.fromkeys(ARGUMENTS, plain),
    },
)
"""Keys of `sentence_bert_config.json`."""

SENTENCE_TRANSFORMERS = Keys(
    kinds={
        "prompts": Kind(
            f"texts of at most {LONGEST:,} characters by name",
            lambda x: isinstance(x, dict) and all(prompt is None or WORD.takes(prompt) for prompt in x.values()),
        ),
        "default_prompt_name": WORD,
    },
    done="prompts default_prompt_name",
    idle="__version__ model_type similarity_fn_name requirements",  # the similarity is none of an embedding
    only={"truncate_dim": nothing},
)
"""Keys of `config_sentence_transformers.json`."""

POOLING = Keys(
    done="pooling_mode pooling_mode_* include_prompt", idle="word_embedding_dimension embedding_dimension", only={}
)
"""Keys of the `config.json` of a `Pooling` of sentence-transformers."""

NORMALIZE = Keys(
    done="",
    idle="",
    only={"module_input_name": among("sentence_embedding"), "module_output_name": among("sentence_embedding")},
)
"""Keys of the `config.json` of a `Normalize` of sentence-transformers."""

OPEN_CLIP_TOKENIZER = Keys(
    kinds={"clean": WORD},
    done="clean",
    idle="context_length cache_dir",
    only=dict.fromkeys(("reduction_mask", "additional_special_tokens", "strip_sep_token", "language"), nothing),
)
"""Keys of `tokenizer_kwargs` in the `text_cfg` of `open_clip_config.json`."""

GENERATION = Keys(
    done="do_sample temperature top_k top_p eos_token_id pad_token_id",
    idle="""max_length max_new_tokens use_cache cache_* max_cache_len output_* return_dict_in_generate bos_token_id
        decoder_start_token_id early_stopping length_penalty num_assistant_* assistant_* target_lookbehind is_assistant
        prompt_lookup_* max_matching_ngram_size speculation_type use_mtp compile_config disable_compile low_memory
        continuous_batching_config prefill_chunk_size renormalize_logits remove_invalid_values chat_format
        transformers_version _from_model_config _commit_hash trust_remote_code""",
    only={
        **dict.fromkeys(
            ("min_length", "min_new_tokens", "no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), among(0)
        ),
        **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), among(1)),
        **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), among(1)),
        **dict.fromkeys(
            ("min_p", "top_h", "diversity_penalty", "penalty_alpha", "encoder_no_repeat_ngram_size"), nothing
        ),
        **dict.fromkeys(
            ("bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "suppress_tokens"), nothing
        ),
        **dict.fromkeys(("begin_suppress_tokens", "stop_strings", "token_healing", "watermarking_config"), nothing),
        **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), among()),
        **dict.fromkeys(("exponential_decay_length_penalty", "dola_layers", "max_time"), nothing),
    },
)
"""Keys of `generation_config.json`."""

PREPROCESSOR = Keys(
    done="""image_processor_type feature_extractor_type do_resize size default_to_square resample do_center_crop
        crop_size crop_pct do_rescale rescale_factor do_normalize image_mean image_std patch_size max_num_patches""",
    idle="""processor_class return_tensors data_format input_data_format device disable_grouping do_convert_rgb auto_map
        _valid_processor_keys do_reduce_labels image_seq_length model_input_names transformers_version antialias
        max_size do_pad do_flip_channel_order use_square_size rescale_offset size_divisor pad_size _processor_class""",
)
"""Keys of `preprocessor_config.json`; `images.processor` refuses the ignored ones that would change numbers."""
