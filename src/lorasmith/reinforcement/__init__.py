"""Reinforcement by rewards: trl's GRPO trainer with the guards and levers of a run."""
