"""Pseudo-labels: embeddings of the training set and their clusters."""
