"""A run from outside: its settings for trl, its folder, its records, its end."""
