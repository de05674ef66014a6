"""Search: fill a space's holes, screen what is too costly for free, train the rest, keep the front."""
