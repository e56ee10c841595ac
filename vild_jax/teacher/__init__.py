"""CLIP as the teacher: prompts, tokens, embeddings."""
