"""What predicts: HGGEP and what it has to beat, by name."""
