"""Draws the world of the demo and trains its teacher."""
