"""Receptive tokens (MasKD): vectors that say which pixels of the teacher belong together, and how they are learnt."""
