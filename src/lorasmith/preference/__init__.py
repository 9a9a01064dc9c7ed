"""Training on which of two answers is preferred, on trl's trainers."""
