"""Features and positions in, expression out."""
