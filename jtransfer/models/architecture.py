"""What the rest of the code may ask of an architecture."""

BEFORE_BLOCKS = ("embeddings", "stem")
"""Names of the modules that compute before the first block; what is in neither these nor a block computes after."""

CONVOLUTION = r"(.*/)?conv(_\d+)?"
"""Paths of the convolutions; every other `kernel` is of a dense layer."""
