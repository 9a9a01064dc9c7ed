"""What leaves the workshop: merged and quantized models, each proven."""
