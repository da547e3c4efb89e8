"""The HGR and what it does to prompts. Only tensors: no host, and no file but its own."""
