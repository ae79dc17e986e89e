"""Training: losses, data, the loop, fitting by gradient. Nothing outside of the command line imports it."""
