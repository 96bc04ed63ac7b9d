"""Reading of audio: annotations, views, augmentation, embedding."""
