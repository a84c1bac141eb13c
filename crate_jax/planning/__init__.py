"""What a training step will need on a machine that is not here: ahead-of-time compilation and what can be read off it."""
