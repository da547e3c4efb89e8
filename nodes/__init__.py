"""The nodes: schemas and calls into `hgr`, no mathematics."""
