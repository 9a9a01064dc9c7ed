"""What keeps a run from losing work or shipping a wreck: checkpoints, resume, stopping, and checks of what is saved."""
