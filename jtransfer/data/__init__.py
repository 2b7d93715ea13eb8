"""Data: named sources, few-shot subsets, the embedded pretraining source of warped glyphs, and preprocessing."""
