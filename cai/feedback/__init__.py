"""The critique–revise loop, AI judging, and the hygiene of what they produce."""
