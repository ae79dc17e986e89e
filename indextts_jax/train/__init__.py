"""Training and gradients: nothing else in the package imports this."""
