"""Does the small predict the large? The same candidates at several sizes, and how far their orders agree."""
