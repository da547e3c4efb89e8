"""Hosts: each package here knows the internals of one program, and nothing else in `hgr` does."""
