"""A small voice, trained from random weights on synthetic speech: README.md has the commands in order."""
