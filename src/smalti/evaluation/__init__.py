"""L6: evaluation of tokenizers, backbones and fine-tuned networks."""
