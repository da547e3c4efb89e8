"""The demo world: a procedural world, its captions, its classifier and a tiny model of the SD 1.5 family."""
