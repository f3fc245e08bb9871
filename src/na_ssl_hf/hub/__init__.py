"""Everything that travels with a checkpoint: models, extractor, memory bank, threshold and pipeline."""
