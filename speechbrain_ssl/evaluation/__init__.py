"""Speaker verification: scores, error rates, intervals."""
