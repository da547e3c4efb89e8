"""Trains the bundled demo model, its classifier and its HGR."""
