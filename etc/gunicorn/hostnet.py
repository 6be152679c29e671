"""gunicorn for the network service: gunicorn --paste /etc/mooring/hostnet.ini -c THIS_FILE.

Every value is gunicorn's own setting; the names are documented with gunicorn.
"""

# Stops with one line that names the culprit, before any worker begins, if the paste file is wrong.
from services.core.deploy import on_starting

__all__ = ["on_starting"]

# NGINX's user needs write permission on it.
bind = ["unix:/run/mooring/hostnet.sock"]
umask = 0o007

# Each host keeps one request waiting for its changes, which costs a thread that sleeps: a worker
# holds some 500 hosts beside the requests of operators (62 MiB with 1,000, measured).
worker_class = "gthread"
workers = 2
threads = 512
backlog = 2048
# A worker that does not breathe for so long is replaced; waiting requests do not count.
timeout = 60
graceful_timeout = 10

# NGINX in front has the same limits.
limit_request_line = 8190
limit_request_fields = 64
limit_request_field_size = 12288

# NGINX is the only peer and sets what is needed; nothing in a header may move the path.
forwarded_allow_ips = ""
forwarder_headers = ""
header_map = "drop"

# Its default is one file for each user: two services under one user would fight over it.
control_socket_disable = True

# NGINX writes the access log, the application says what was changed.
accesslog = None
errorlog = "-"
loglevel = "info"
