"""The ACME server (RFC 8555, with RFC 8737 and RFC 8738); docs/acme.md is its page.

Modules, lowest first: `problems` (the one way to say no), `states` (who may become what), `jws`
(signed requests), `nonces` (sealed, used once), `rules` (which names an account may order),
`challenges` (the only outgoing connections), `store` (the only SQL), `validation` (background
work), `requests` (who asks), `orders` (finalizing, exactly once), `certificates` (the authority),
`application` (the resources), `keys` (operators' side of external accounts).
"""
