"""The trainers of an HGR, its picture probe and a safe LoRA, and the loop that they share."""
