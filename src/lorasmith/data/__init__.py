"""Rows in, audited token ids out. Reads files and talks to tokenizers; knows nothing of models."""
