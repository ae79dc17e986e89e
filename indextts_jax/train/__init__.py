"""Training: losses, data, the loop and adapters. Nothing outside of the command line imports it."""
