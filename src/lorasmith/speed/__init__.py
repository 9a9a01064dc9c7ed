"""What makes a training step fast, one lever a module; nothing here changes what is learned."""
