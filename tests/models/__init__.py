"""Models made of random numbers, in the shapes of real ones: nothing to download, equal bytes for equal seeds."""
