"""What an instance reads about itself, and the operators' API that says it."""
