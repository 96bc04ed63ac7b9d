"""Clustering of embeddings: algorithms, tables for views, quality."""
