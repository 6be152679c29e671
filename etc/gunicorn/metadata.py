"""gunicorn for the metadata service: gunicorn --paste /etc/mooring/metadata.ini -c THIS_FILE.

Every value is gunicorn's own setting; the names are documented with gunicorn.
"""

import os

# Stops with one line that names the culprit, before any worker begins, if the paste file is wrong.
from services.core.deploy import on_starting

__all__ = ["on_starting"]

# One socket for each door of metadata.ini; NGINX's user needs write permission on them.
bind = [
    "unix:/run/mooring/metadata.sock",
    "unix:/run/mooring/flat.sock",
    "unix:/run/mooring/operators.sock",
]
umask = 0o007

# Answers are short and come from memory, so one request at a time and a worker or two a core serve
# best: threads and gevent brought nothing (measured).
# The class is gunicorn's "sync" with one write for each answer, so that a killed worker leaves
# nothing half said and HAProxy can ask again.
worker_class = "services.core.worker.Worker"
workers = 2 * (os.cpu_count() or 1)
backlog = 2048
timeout = 30
graceful_timeout = 30

# NGINX in front limits target and headers (limits.conf: 12 kB each) and allows letters, `-` and `_`
# in a method. gunicorn's own limits are wider, so that what is refused is refused by NGINX or by
# the application: gunicorn's own errors are HTML.
limit_request_line = 0
limit_request_fields = 64
limit_request_field_size = 12288
permit_unconventional_http_method = True

# NGINX is the only peer and sets what is needed; nothing in a header may move the path.
forwarded_allow_ips = ""
forwarder_headers = ""
header_map = "drop"

# Its default is one file for each user: two services under one user would fight over it.
control_socket_disable = True

# NGINX writes the access log.
accesslog = None
errorlog = "-"
loglevel = "info"
