"""SafeCFG and the Harmful Guidance Redirector (HGR), arXiv 2412.16039: the method, for any host.

The modules here know tensors only. `hgr.hosts` knows ComfyUI and diffusers, `hgr.demo` is a small world to measure on.
"""

__version__ = "0.1.0"
