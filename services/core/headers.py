"""The registry of request headers that only the inside may set, and of those no log may show.

The gatekeeper deletes `INSIDE_ONLY` from peers that are not trusted; whatever logs a header leaves
the values of `SECRET` out. The host's proxy does not need the table: it passes an allow-list on.
"""

from __future__ import annotations

# Header -> who sets it. Names are as on the wire; compare them case-insensitively.
INSIDE_ONLY: dict[str, str] = {
    "X-Ssl-Client-Verify": "NGINX: outcome of the client certificate's verification",
    "X-Ssl-Client-Cert": "NGINX: the client certificate, URL-encoded PEM",
    "X-Request-ID": "NGINX: id of the request",
    "X-Forwarded-For": "HAProxy and NGINX: the client's address",
    "X-Forwarded-Host": "nobody: proxies that we do not run set it",
    "X-Forwarded-Port": "nobody: proxies that we do not run set it",
    "X-Forwarded-Prefix": "nobody: proxies that we do not run set it",
    "X-Forwarded-Proto": "nobody: proxies that we do not run set it",
    "X-Forwarded-Server": "nobody: proxies that we do not run set it",
    "Forwarded": "nobody: RFC 7239's spelling of X-Forwarded-For",
    "X-Real-IP": "nobody: another spelling of X-Forwarded-For",
    "X-Instance-ID": "HAProxy or a Neutron agent: the instance",
    "X-Tenant-ID": "HAProxy or a Neutron agent: the instance's project",
    "X-Instance-ID-Signature": "a Neutron agent: signature version 1",
    "X-Metadata-Provider": "nobody: Nova's load-balancer mode, which we do not have",
    "X-Metadata-Provider-Signature": "nobody: Nova's load-balancer mode, which we do not have",
    "X-Neutron-Network-ID": "nobody: stays between Neutron's own processes",
    "X-Neutron-Router-ID": "nobody: stays between Neutron's own processes",
    "X-OVN-Network-ID": "nobody: stays between Neutron's own processes",
    "X-Mooring-Network": "HAProxy: the network that the instance asked from",
    "X-Mooring-Time": "HAProxy: when it signed, in Unix seconds",
    "X-Mooring-Signature": "HAProxy: signature version 2",
    "X-Mooring-Forwarded": "HAProxy: the instance sent its own X-Forwarded-For",
    "X-Mooring-Hop-Limit": "the metadata application, in answers only",
}

# Headers whose values no log may show: credentials, signatures and certificates.
SECRET: frozenset[str] = frozenset(
    {
        "Authorization",
        "Cookie",
        "Proxy-Authorization",
        "Set-Cookie",
        "X-Auth-Token",
        "X-Instance-ID-Signature",
        "X-Metadata-Provider-Signature",
        "X-Metadata-Token",
        "X-Mooring-Signature",
        "X-Service-Token",
        "X-Ssl-Client-Cert",
        "X-Subject-Token",
        "X-aws-ec2-metadata-token",
    }
)


def environ_key(header: str) -> str:
    """The WSGI environ key of a request header: `X-Real-IP` -> `HTTP_X_REAL_IP`."""
    return "HTTP_" + header.upper().replace("-", "_")


INSIDE_ONLY_KEYS: frozenset[str] = frozenset(map(environ_key, INSIDE_ONLY))
