"""What is computed once for a data set, before a student learns from it."""
