"""Tables, as SQLAlchemy Core sees them; migrations/ makes them, a test holds the two together.

Times are text in ISO 8601 with microseconds and ``Z``: they sort as they read, on both engines.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)
from sqlalchemy.schema import SchemaItem

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# One row. ``epoch`` is random and new for every installation or restored copy; ``number`` is raised
# as the last statement of each writing transaction, so revisions are contiguous and become visible
# in order (a sequence read with "greater than the last" misses what commits late).
revision = Table(
    "revision",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", String(32), nullable=False),
    Column("number", Integer, nullable=False),
    CheckConstraint("id = 1", name="single"),
)

# What each revision changed. No body: a reader takes the object as it is when it reads.
change = Table(
    "change",
    METADATA,
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("ordinal", Integer, primary_key=True, autoincrement=False),
    Column("nonce", String(16), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("object_id", String(64), nullable=False),
    Column("operation", String(8), nullable=False),
    Column("scope", String(128), nullable=False),
    Column("at", String(27), nullable=False),
)

# ``document`` is Instance.to_document() without user data, which may be large and is read rarely.
instance = Table(
    "instance",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("hostname", String(253), nullable=False),
    Column("host", String(63)),
    Column("next_host", String(63)),
    Column("instance_type", String(255)),
    Column("image_id", String(64)),
    Column("availability_zone", String(64)),
    Column("created_at", String(27), nullable=False),
    Column("updated_at", String(27), nullable=False),
    Column("version", Integer, nullable=False),
    Column("document", Text, nullable=False),
    Column("user_data", LargeBinary),
    Index(None, "created_at", "id"),
    Index(None, "project_id", "created_at", "id"),
    Index(None, "host"),
    Index(None, "next_host"),
)

# Who sends from which address of which network: two instances that race for one meet the key.
instance_address = Table(
    "instance_address",
    METADATA,
    Column("network_id", String(64), primary_key=True),
    Column("address", String(45), primary_key=True),
    Column("instance_id", ForeignKey("instance.id", ondelete="CASCADE"), nullable=False),
    Index(None, "address"),
    Index(None, "instance_id"),
)

# A password is set once by the instance; the primary key refuses a second one at once.
instance_password = Table(
    "instance_password",
    METADATA,
    Column("instance_id", ForeignKey("instance.id", ondelete="CASCADE"), primary_key=True),
    Column("password", LargeBinary, nullable=False),
    Column("set_at", String(27), nullable=False),
)

# ---- certificates (services/ca) -----------------------------------------------------------------
# Serials, key identifiers and digests are lower-case hex without separators; a serial has 40
# digits, so that text sorts as the number does.

# An authority that signs: its subject key identifier names it. ``crl_number`` is the number of the
# last list, complete or delta; whoever makes a list locks this row.
ca_authority = Table(
    "ca_authority",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("created_at", String(27), nullable=False),
    Column("not_after", String(27), nullable=False),
    Column("crl_number", BigInteger, nullable=False),
)

# ``state``: pending (serial reserved, to-be-signed digest recorded, not yet given out), issued,
# held (revoked with certificateHold), revoked. ``names`` is a JSON list of [kind, value].
ca_certificate = Table(
    "ca_certificate",
    METADATA,
    Column("authority_id", String(40), primary_key=True),
    Column("serial", String(40), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("profile", String(32), nullable=False),
    Column("subject", Text, nullable=False),
    Column("common_name", String(255), nullable=False),
    Column("names", Text, nullable=False),
    Column("key_id", String(40), nullable=False),
    Column("tbs_digest", String(64), nullable=False),
    Column("fingerprint", String(64)),
    Column("der", LargeBinary),
    Column("not_before", String(27), nullable=False),
    Column("not_after", String(27), nullable=False),
    Column("created_at", String(27), nullable=False),
    Column("requested_by", String(255), nullable=False),
    Column("revoked_at", String(27)),
    Column("reason", String(24)),
    # revision of the certificate's status: what changed since a complete list goes into a delta
    Column("status_number", BigInteger),
    Index(None, "fingerprint", unique=True),
    Index(None, "not_after"),
    Index(None, "common_name"),
    Index(None, "created_at", "serial"),
    Index(None, "authority_id", "revoked_at"),
    # few rows have one, and issuing must not pay for it
    Index(
        None,
        "authority_id",
        "status_number",
        sqlite_where=text("status_number IS NOT NULL"),
        postgresql_where=text("status_number IS NOT NULL"),
    ),
)

# One row a name, for searching: kind is dns, ip or uri.
ca_certificate_name = Table(
    "ca_certificate_name",
    METADATA,
    Column("authority_id", String(40), primary_key=True),
    Column("serial", String(40), primary_key=True),
    Column("kind", String(4), primary_key=True),
    Column("value", String(255), primary_key=True),
    Index(None, "value"),
)

# Complete lists: the newest, and older ones that a delta may be based on.
ca_crl = Table(
    "ca_crl",
    METADATA,
    Column("authority_id", String(40), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", String(27), nullable=False),
    Column("next_update", String(27), nullable=False),
)

# The newest delta of each authority, of the same number as the complete list that was made with it.
ca_delta = Table(
    "ca_delta",
    METADATA,
    Column("authority_id", String(40), primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("base_number", BigInteger, nullable=False),
    Column("der", LargeBinary, nullable=False),
    Column("this_update", String(27), nullable=False),
    Column("next_update", String(27), nullable=False),
)

# One-time enrolment tokens; only a SHA-256 of the secret is kept. ``request`` is a JSON object of
# what it is bound to (profile, common_name, organizations, dns_names, ip_addresses, uris).
ca_token = Table(
    "ca_token",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("created_at", String(27), nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("expires_at", String(27), nullable=False),
    Column("used_at", String(27)),
    Column("used_for", String(40)),
    Index(None, "digest", unique=True),
)

# Append-only. ``hash`` is SHA-256 over the row before it and this row's fields, so a changed,
# removed or inserted row is found by whoever kept a later hash.
ca_audit = Table(
    "ca_audit",
    METADATA,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at", String(27), nullable=False),
    Column("actor", String(255), nullable=False),
    Column("address", String(64), nullable=False),
    Column("request_id", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("decision", String(16), nullable=False),
    Column("detail", Text, nullable=False),
    Column("hash", String(64), nullable=False),
)

acme_account = Table(
    "acme_account",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("key_thumbprint", String(64), nullable=False),
    Column("jwk", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("contact", Text, nullable=False),
    Column("external_id", String(64)),
    Column("created_at", String(27), nullable=False),
    Index(None, "key_thumbprint", unique=True),
    Index(None, "created_at"),
)

# Keys for external account binding: the id is public, the key is kept because HMAC needs it.
acme_external_key = Table(
    "acme_external_key",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("rules", Text, nullable=False),
    Column("created_at", String(27), nullable=False),
    Column("created_by", String(255), nullable=False),
    Column("used_at", String(27)),
)

acme_order = Table(
    "acme_order",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("acme_account.id"), nullable=False),
    Column("status", String(16), nullable=False),
    Column("identifiers", Text, nullable=False),
    Column("error", Text),
    Column("authority_id", String(40)),
    Column("serial", String(40)),
    Column("created_at", String(27), nullable=False),
    Column("expires_at", String(27), nullable=False),
    # what is being signed, and until when nobody else tries, so that a killed worker's order ends
    Column("csr", LargeBinary),
    Column("processing_until", String(27)),
    Index(None, "account_id", "created_at", "id"),
    Index(None, "authority_id", "serial"),
)

acme_authorization = Table(
    "acme_authorization",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("order_id", ForeignKey("acme_order.id"), nullable=False),
    Column("account_id", ForeignKey("acme_account.id"), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("value", String(255), nullable=False),
    Column("wildcard", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("expires_at", String(27), nullable=False),
    Index(None, "order_id"),
)

acme_challenge = Table(
    "acme_challenge",
    METADATA,
    Column("id", String(36), primary_key=True),
    Column("authorization_id", ForeignKey("acme_authorization.id"), nullable=False),
    Column("type", String(16), nullable=False),
    Column("token", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("validated_at", String(27)),
    Column("error", Text),
    # until when nobody else validates it
    Column("processing_until", String(27)),
    Index(None, "authorization_id"),
)

# Nonces that were used and have not yet expired: a nonce carries its own time, so only these count.
acme_nonce = Table(
    "acme_nonce",
    METADATA,
    Column("nonce", String(64), primary_key=True),
    Column("expires_at", String(27), nullable=False),
    Index(None, "expires_at"),
)

# One row: what every replica seals nonces with. It guards no right, only the table above from rows
# for nonces that were never given out.
acme_secret = Table(
    "acme_secret",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, nullable=False),
    CheckConstraint("id = 1", name="single"),
)

# ---- networks (services/hostnet) ----------------------------------------------------------------
# Names are those of OpenStack Networking. Lists and objects are JSON in text. What says that it is
# "'' for none" is part of a key, where a null would not be equal to another one.


def _resource(name: str, *columns: SchemaItem) -> Table:
    """A table of an API resource: what every one of them has, then its own."""
    return Table(
        name,
        METADATA,
        Column("id", String(36), primary_key=True),
        Column("project_id", String(64), nullable=False),
        Column("name", String(255), nullable=False),
        Column("description", String(255), nullable=False),
        Column("revision_number", Integer, nullable=False),
        Column("created_at", String(27), nullable=False),
        Column("updated_at", String(27), nullable=False),
        *columns,
        Index(None, "project_id"),
        Index(None, "created_at", "id"),
    )


# A host that runs the agent, known by its certificate's CN. ``agent_id`` is its id in `openstack
# network agent list`; ``tunnel_address`` is where the others send VXLAN to; ``bridge_mappings`` a
# JSON object from physical network to interface.
host = Table(
    "host",
    METADATA,
    Column("name", String(63), primary_key=True),
    Column("agent_id", String(36), nullable=False),
    Column("tunnel_address", String(45)),
    Column("bridge_mappings", Text, nullable=False),
    Column("configuration", Text, nullable=False),
    Column("admin_state_up", Boolean, nullable=False),
    Column("availability_zone", String(64), nullable=False),
    Column("description", String(255), nullable=False),
    Column("created_at", String(27), nullable=False),
    Index(None, "agent_id", unique=True),
    Index(None, "tunnel_address", unique=True),
)

# Heartbeats and reports, outside what is watched: no revision is raised for them. ``failures`` is a
# JSON list of what the host could not program.
host_status = Table(
    "host_status",
    METADATA,
    Column("host", ForeignKey("host.name", ondelete="CASCADE"), primary_key=True),
    Column("seen_at", String(27), nullable=False),
    Column("started_at", String(27), nullable=False),
    Column("token", String(80), nullable=False),
    Column("failures", Text, nullable=False),
)

# Ports that a host says are wired.
port_status = Table(
    "port_status",
    METADATA,
    Column("port_id", ForeignKey("port.id", ondelete="CASCADE"), primary_key=True),
    Column("host", String(63), primary_key=True),
    Column("at", String(27), nullable=False),
    Index(None, "host"),
)

network = _resource(
    "network",
    Column("admin_state_up", Boolean, nullable=False),
    Column("shared", Boolean, nullable=False),
    Column("external", Boolean, nullable=False),
    Column("is_default", Boolean, nullable=False),
    Column("mtu", Integer, nullable=False),
    Column("network_type", String(16), nullable=False),
    Column("physical_network", String(64)),
    Column("segmentation_id", Integer),
    Column("port_security_enabled", Boolean, nullable=False),
    Column("dns_domain", String(255), nullable=False),
    Column("availability_zone_hints", Text, nullable=False),
)

# Who has a segment: two networks that race for one meet the key. A flat network has its physical
# network with the number 0, VXLAN '' for the physical network; local networks have no row.
network_segment = Table(
    "network_segment",
    METADATA,
    Column("network_type", String(16), primary_key=True),
    Column("physical_network", String(64), primary_key=True),
    Column("segmentation_id", Integer, primary_key=True, autoincrement=False),
    Column("network_id", ForeignKey("network.id", ondelete="CASCADE"), nullable=False),
    Index(None, "network_id", unique=True),
)

subnet = _resource(
    "subnet",
    Column("network_id", ForeignKey("network.id"), nullable=False),
    Column("ip_version", Integer, nullable=False),
    Column("cidr", String(64), nullable=False),
    Column("gateway_ip", String(45)),
    Column("enable_dhcp", Boolean, nullable=False),
    Column("ipv6_ra_mode", String(16)),
    Column("ipv6_address_mode", String(16)),
    Column("dns_nameservers", Text, nullable=False),
    Column("host_routes", Text, nullable=False),
    Column("allocation_pools", Text, nullable=False),
    Column("service_types", Text, nullable=False),
    Column("dns_publish_fixed_ip", Boolean, nullable=False),
    Column("subnetpool_id", String(36)),
    Index(None, "network_id"),
)

# ``host`` is binding:host_id, ``next_host`` the host that it moves to.
port = _resource(
    "port",
    Column("network_id", ForeignKey("network.id"), nullable=False),
    Column("mac_address", String(17), nullable=False),
    Column("admin_state_up", Boolean, nullable=False),
    Column("device_id", String(255), nullable=False),
    Column("device_owner", String(255), nullable=False),
    Column("host", String(63)),
    Column("next_host", String(63)),
    Column("vnic_type", String(64), nullable=False),
    Column("binding_profile", Text, nullable=False),
    Column("port_security_enabled", Boolean, nullable=False),
    Column("allowed_address_pairs", Text, nullable=False),
    Column("extra_dhcp_opts", Text, nullable=False),
    Column("dns_name", String(255), nullable=False),
    Index(None, "network_id", "mac_address", unique=True),
    Index(None, "device_id"),
    Index(None, "host"),
    Index(None, "next_host"),
)

# Two ports that race for an address meet the key.
ip_allocation = Table(
    "ip_allocation",
    METADATA,
    Column("network_id", ForeignKey("network.id"), primary_key=True),
    Column("ip_address", String(45), primary_key=True),
    Column("subnet_id", ForeignKey("subnet.id"), nullable=False),
    Column("port_id", ForeignKey("port.id", ondelete="CASCADE"), nullable=False),
    # the place in the port's fixed_ips
    Column("ordinal", Integer, nullable=False),
    Index(None, "subnet_id"),
    Index(None, "port_id"),
)

security_group = _resource(
    "security_group",
    Column("stateful", Boolean, nullable=False),
    # the project's group of this name is made by itself, and there is one
    Column("is_default", Boolean, nullable=False),
    Index(
        "ix_security_group_default",
        "project_id",
        unique=True,
        sqlite_where=text("is_default"),
        postgresql_where=text("is_default"),
    ),
)

security_group_rule = _resource(
    "security_group_rule",
    Column(
        "security_group_id", ForeignKey("security_group.id", ondelete="CASCADE"), nullable=False
    ),
    Column("direction", String(8), nullable=False),
    Column("ethertype", String(4), nullable=False),
    Column("protocol", String(40)),
    Column("port_range_min", Integer),
    Column("port_range_max", Integer),
    Column("remote_ip_prefix", String(64)),
    Column("remote_group_id", ForeignKey("security_group.id", ondelete="CASCADE")),
    Index(None, "security_group_id"),
    Index(None, "remote_group_id"),
)

port_security_group = Table(
    "port_security_group",
    METADATA,
    Column("port_id", ForeignKey("port.id", ondelete="CASCADE"), primary_key=True),
    Column("security_group_id", ForeignKey("security_group.id"), primary_key=True),
    Index(None, "security_group_id"),
)

# ``host`` is where the router runs.
router = _resource(
    "router",
    Column("admin_state_up", Boolean, nullable=False),
    Column("external_network_id", ForeignKey("network.id")),
    Column("gateway_port_id", ForeignKey("port.id")),
    Column("enable_snat", Boolean, nullable=False),
    Column("routes", Text, nullable=False),
    Column("host", String(63)),
    Column("availability_zone_hints", Text, nullable=False),
    Index(None, "external_network_id"),
    Index(None, "host"),
)

# An interface or gateway of a router; its port's device_id is the router's id.
router_port = Table(
    "router_port",
    METADATA,
    Column("port_id", ForeignKey("port.id"), primary_key=True),
    Column("router_id", ForeignKey("router.id"), nullable=False),
    Index(None, "router_id"),
)

# Its address is held by ``floating_port_id``, a port of the external network.
floating_ip = _resource(
    "floating_ip",
    Column("floating_network_id", ForeignKey("network.id"), nullable=False),
    Column("floating_ip_address", String(45), nullable=False),
    Column("floating_port_id", ForeignKey("port.id"), nullable=False),
    Column("port_id", ForeignKey("port.id")),
    Column("fixed_ip_address", String(45)),
    Column("router_id", ForeignKey("router.id")),
    Column("dns_name", String(255), nullable=False),
    Column("dns_domain", String(255), nullable=False),
    Index(None, "floating_network_id", "floating_ip_address", unique=True),
    Index(None, "port_id", "fixed_ip_address", unique=True),
    Index(None, "router_id"),
)

# Limits that an admin set for a project; the others have those of mooring.conf. -1 is none.
quota = Table(
    "quota",
    METADATA,
    Column("project_id", String(64), primary_key=True),
    Column("resource", String(64), primary_key=True),
    Column("limit", Integer, nullable=False),
)

# ``resource_type`` is the API's collection: networks, ports, ...
resource_tag = Table(
    "resource_tag",
    METADATA,
    Column("resource_type", String(32), primary_key=True),
    Column("resource_id", String(36), primary_key=True),
    Column("tag", String(255), primary_key=True),
    Index(None, "resource_type", "tag"),
)
