"""What a run needs, by arithmetic on the model's config alone: memory, time and disk. Imports no torch."""
