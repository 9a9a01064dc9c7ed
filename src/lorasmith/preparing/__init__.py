"""Raw files in, cleaned and split rows out, with an account of every row. Loads no model."""
