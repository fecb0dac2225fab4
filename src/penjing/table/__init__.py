"""Tables of measurements that others made: their rows, read in the words of their sources."""
