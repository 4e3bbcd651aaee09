"""What is seen of spots: patches, encoders' features, colour and texture."""
