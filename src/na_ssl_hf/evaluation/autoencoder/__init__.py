"""The reconstruction baseline: an autoencoder that is trained on normal log-mel frames."""
