"""What lies on disk: models, checkpoints, files written whole."""
