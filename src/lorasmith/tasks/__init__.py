"""Training of classifiers, taggers, answer finders and sequence-to-sequence models over transformers' trainer."""
