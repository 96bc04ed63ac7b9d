"""A WavLM of two layers with random weights, in Hugging Face's format."""

import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMModel

LAYERS, WIDTH = 2, 32


def write(folder, normalize=False, **changes):
    """Writes it into a folder, which is made."""
    settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "conv_dim": [16] * 7,
        "num_conv_pos_embeddings": 8,
        # with 4 groups of 8 channels torch 2.11 gives other numbers in bf16, on
        # CPUs with AMX; not with 16 of 48, which WavLM Base has
        "num_conv_pos_embedding_groups": 2,
        "layerdrop": 0.9,
        **changes,
    }
    torch.manual_seed(0)
    WavLMModel(WavLMConfig(**settings)).save_pretrained(str(folder))
    Wav2Vec2FeatureExtractor(do_normalize=normalize).save_pretrained(
        str(folder)
    )
    return str(folder)
