"""Transfer curves: arms, the run of their cells, the table and figure, and what zero-shot is worth in labels."""
