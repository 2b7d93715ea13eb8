"""Data: named sources, few-shot subsets, and the embedded pretraining source of warped glyphs."""
