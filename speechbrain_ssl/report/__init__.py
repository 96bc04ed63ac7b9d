"""Plots, and one HTML page per run."""
