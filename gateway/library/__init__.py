"""What lies on disk: which files a name stands for, how they get here, and whether they are what they claim to be."""
