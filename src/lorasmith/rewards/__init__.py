"""Rewards for reinforcement: the user's functions, loaded and checked, and a sandbox for programs."""
