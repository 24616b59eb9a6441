"""What is written by hand in an hour, with the same libraries: the limit, and what it would cost to do without us."""
