"""ComfyUI as host: the one folder of the pack that knows ComfyUI's internals. Works from ComfyUI 0.8.0 on."""
