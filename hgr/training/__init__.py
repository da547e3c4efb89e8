"""The trainers of an HGR, of its picture probe and of a safe LoRA, and their one loop."""
