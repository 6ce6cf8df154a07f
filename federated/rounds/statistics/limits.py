"""How much a question about frequent items may hold; no arrays, so that a command can name it."""

ITEMS_MAX = 200_000
"""Records of one member. With k = 20 a level's supports of them take 0.6 s: the others wait."""
K_MAX = 100
"""Items wanted: as many as a table shows people. Guess."""
