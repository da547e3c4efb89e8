"""Prompts to learn from, and where they come from. Nothing here imports torch."""
