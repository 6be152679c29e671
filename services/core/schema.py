"""Tables, as SQLAlchemy Core sees them; migrations/ makes them, a test holds the two together.

Times are text in ISO 8601 with microseconds and ``Z``: they sort as they read, on both engines.
"""

from sqlalchemy import (
    BigInteger,
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
