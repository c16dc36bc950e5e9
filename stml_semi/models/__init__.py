"""Backbones, heads, teacher."""
