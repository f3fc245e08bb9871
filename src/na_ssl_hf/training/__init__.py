"""Training: distillation of the noise-aware layers, and discriminative fine-tuning."""
