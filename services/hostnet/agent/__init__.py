"""The host's side of Mooring: what runs beside the instances. Never imports the database."""
