"""Predictions of a trained model for the rows of a file: what is read, what the model says, and how it is written."""
