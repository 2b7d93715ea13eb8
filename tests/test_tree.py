"""Trees and rules."""

import jax.numpy as jnp
import pytest

from jtransfer.errors import InputError
from jtransfer.tree import FROZEN, flat, label, merge, nested, partition, prefixed, select, size, summary

PATHS = ["encoder/block_0/kernel", "encoder/block_1/kernel", "head/kernel", "head/bias"]


def test_the_first_rule_that_matches_a_whole_path_decides():
    labels = label(PATHS, [("head/kernel", 2.0), ("head/.*", 1.0), (".*", FROZEN)])
    assert labels == {PATHS[0]: 0.0, PATHS[1]: 0.0, "head/kernel": 2.0, "head/bias": 1.0}


def test_part_of_a_path_is_no_match():
    with pytest.raises(InputError, match="rule 'head' matches none of the 4 leaves; did you mean 'head/bias'"):
        label(PATHS, [("head", 1.0), (".*", FROZEN)])


def test_a_rule_for_what_begins_no_path_is_an_error_that_names_the_nearest_beginning():
    with pytest.raises(InputError, match="rule 'encodr/.*' matches none of the 4 leaves; did you mean 'encoder'"):
        label(PATHS, [("encodr/.*", 1.0), (".*", FROZEN)])


def test_a_rule_that_matches_no_leaf_is_an_error_that_names_the_nearest_leaf():
    with pytest.raises(InputError, match="'encodr/block_0/kernel' matches none.*did you mean 'encoder/block_0/kernel'"):
        label(PATHS, [("encodr/block_0/kernel", 1.0), (".*", FROZEN)])


def test_a_rule_whose_leaves_earlier_rules_took_is_shadowed_and_fine():
    assert set(label(PATHS, [(".*", 1.0), ("head/.*", 2.0)]).values()) == {1.0}


def test_a_leaf_that_no_rule_matches_is_an_error_that_names_it():
    with pytest.raises(InputError, match=r"no rule matches leaf 'head/kernel' \(and 1 more leaves\)"):
        label(PATHS, [("encoder/.*", 1.0)])


def test_a_rule_that_is_no_regular_expression_is_named():
    with pytest.raises(InputError, match=r"rule 'head/\(' is not a regular expression"):
        label(PATHS, [("head/(", 1.0)])


def test_partition_and_merge_are_inverse_and_keep_every_leaf():
    tree = {path: i for i, path in enumerate(PATHS)}
    trainable, frozen = partition(tree, label(PATHS, [("head/.*", 1.0), (".*", FROZEN)]))
    assert trainable == {"head/kernel": 2, "head/bias": 3}
    assert frozen == {"encoder/block_0/kernel": 0, "encoder/block_1/kernel": 1}
    assert merge(trainable, frozen) == tree


def test_merging_trees_that_share_a_leaf_is_an_error():
    with pytest.raises(InputError, match="leaf 'a' stands in more than one"):
        merge({"a": 1}, {"a": 2})


def test_flat_and_nested_and_prefixes_are_inverse():
    tree = {"encoder/kernel": 1, "head/bias": 2}
    assert nested(tree) == {"encoder": {"kernel": 1}, "head": {"bias": 2}}
    assert flat(nested(tree)) == tree
    assert select(prefixed(tree, "ema/") | {"other": 3}, "ema/") == tree


def test_summary_and_size_count_parameters():
    tree = {"head/kernel": jnp.zeros((3, 4)), "head/bias": jnp.zeros(4)}
    assert size(tree) == 16
    row = {"path": "head/kernel", "shape": [3, 4], "dtype": "float32", "parameters": 12, "label": 1.0}
    assert summary(tree, {"head/kernel": 1.0, "head/bias": 0.0})[0] == row
