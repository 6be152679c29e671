"""Tables, as SQLAlchemy Core sees them; migrations/ makes them, a test holds the two together.

Times are text in ISO 8601 with microseconds and ``Z``: they sort as they read, on both engines.
"""

from sqlalchemy import (
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
