"""From sections to a trained network."""
