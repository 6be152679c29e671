"""gunicorn for the certificate service: gunicorn --paste /etc/mooring/ca.ini -c THIS_FILE.

Every value is gunicorn's own setting; the names are documented with gunicorn.
"""

import os

# Stops with one line that names the culprit, before any worker begins, if the paste file is wrong.
from services.core.deploy import on_starting

__all__ = ["on_starting"]

# One socket for each door of ca.ini; NGINX's user needs write permission on them.
bind = ["unix:/run/mooring/ca.sock", "unix:/run/mooring/ca-public.sock"]
umask = 0o007

# Signing takes the whole of a core and threads do not divide it (measured). In a worker, requests
# for certificates that come at the same time go through each stage and to the disk together; more
# than one worker a core only makes these groups smaller. Two at least, so that one may be busy.
worker_class = "services.core.worker.TurnsWorker"
workers = max(2, os.cpu_count() or 1)
backlog = 2048
timeout = 30
graceful_timeout = 30

# A client certificate is the largest header; NGINX has the same limits in front.
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190

# NGINX is the only peer and sets what is needed; nothing in a header may move the path.
forwarded_allow_ips = ""
forwarder_headers = ""
header_map = "drop"

# Its default is one file for each user: two services under one user would fight over it.
control_socket_disable = True

# NGINX writes the access log, the application says what it has issued.
accesslog = None
errorlog = "-"
loglevel = "info"
