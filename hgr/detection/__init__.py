"""How harmful a prompt or a picture is."""
