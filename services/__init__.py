"""One package for each service; `services.core` holds what they share."""
