"""ComfyUI as host: the only folder that knows ComfyUI's internals. Works with ComfyUI 0.8.0 and later."""
