"""State blocks: they transform each token by itself and own knowledge."""
