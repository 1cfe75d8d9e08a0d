"""Text from a trained model: decoding, sampling, stories."""
