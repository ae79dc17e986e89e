"""Recipes: from nothing to a trained model, with commands and files of settings."""
