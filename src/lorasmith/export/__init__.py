"""Adapters as files: what they hold, whether they are sound, smaller or in another layout, packed and sent."""
