"""Self-supervised speaker verification for SpeechBrain."""

__version__ = "0.1.0"
