"""Types and plumbing that every service and every filter may import."""
