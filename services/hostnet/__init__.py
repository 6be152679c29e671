"""Networks: the API's side, and in `agent` the side of the host."""
