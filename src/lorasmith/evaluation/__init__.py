"""How good a model is on rows, and whether two models differ. Knows nothing of files or recipes."""
