"""Transformers of two layers with random weights, in Hugging Face's format."""

import torch
import transformers

LAYERS, WIDTH = 2, 32
CONV = {
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 8,
    # with 4 groups of 8 channels torch 2.11 gives other numbers in bf16, on
    # CPUs with AMX; not with 16 of 48, which WavLM Base has
    "num_conv_pos_embedding_groups": 2,
}
FAMILIES = {
    "wavlm": ("WavLM", CONV),
    "hubert": ("Hubert", CONV),
    "wav2vec2": ("Wav2Vec2", CONV),
    "w2v_bert": ("Wav2Vec2Bert", {"position_embeddings_type": None}),
}


def write(folder, normalize=False, family="wavlm", **changes):
    """Writes one into a folder, which is made."""
    name, sizes = FAMILIES[family]
    settings = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "layerdrop": 0.9,
        **sizes,
        **changes,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}Model")(config)
    model.save_pretrained(str(folder))
    if family == "w2v_bert":
        preprocessor = transformers.SeamlessM4TFeatureExtractor()
    else:
        preprocessor = transformers.Wav2Vec2FeatureExtractor(
            do_normalize=normalize
        )
    preprocessor.save_pretrained(str(folder))
    return str(folder)
