"""Self-supervised speaker verification for SpeechBrain."""

import logging

__version__ = "0.1.0"

# SpeechBrain warns at its import that torchvision, which is not needed, is
# not there.
logging.getLogger("speechbrain.utils.train_logger").setLevel(logging.ERROR)
