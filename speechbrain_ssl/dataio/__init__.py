"""Audio files to augmented views."""
