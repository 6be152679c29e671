"""The certificate authority: a pure core that decides and signs.

A hierarchy in memory, for a stand or a first set-up::

    from services.ca.hierarchy import create_hierarchy

    hierarchy = create_hierarchy("Example")
    hierarchy.write(directory)                      # root, intermediate, chain.crt, both keys
    server = hierarchy.issue_server(["mooring.example"], ["192.0.2.1"])
    server.write(directory, "server")               # server.key 0600, server.crt: full chain
    alice = hierarchy.issue_client("alice", ["mooring:operators"])
    host = hierarchy.issue_host("host1")
    host.write(directory, "host-host1", bundle=True)    # and host-host1.pem for HAProxy

A service that is sent requests::

    request = parse_csr(body)                       # services.ca.request; Refused or typed
    certificate = issue(SERVER, request, issuer, now=now)   # services.ca.issue

Modules, lowest first: `refusal` (the one exception), `keys`, `names` (normal forms), `profiles`
(what is issued), `request` (what is asked), `signer` (a key and an authority), `subjects` (names by
profile), `issue`, `crl`, `verify` (client chains), `files` (the only I/O), `hierarchy`.
"""
