"""Speaker encoders that SpeechBrain does not have."""
