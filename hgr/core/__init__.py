"""The HGR and what it does to prompts. Pure tensors; no host, no file but its own."""
