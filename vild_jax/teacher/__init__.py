"""Embeds texts and pictures with the teacher, a CLIP: checkpoints, prompts, tokens, crops."""
