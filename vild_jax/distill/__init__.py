"""Computes what distillation needs, once for a data set: proposals and the teacher's embeddings of them."""
