"""Where a newcomer's block stands among the blocks of the shelf."""
