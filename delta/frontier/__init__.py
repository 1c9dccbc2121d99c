"""The trade that a user chooses from: a sweep whose every point is measured, and the choice within limits."""
