"""WSGI filters, one a module, each with `filter_factory` at the bottom."""
