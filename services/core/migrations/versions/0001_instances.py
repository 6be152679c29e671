"""Revision feed and instances."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the first tables and the one row of the revision."""
    table = op.create_table(
        "revision",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("epoch", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revision"),
        sa.CheckConstraint("id = 1", name="ck_revision_single"),
    )
    op.bulk_insert(table, [{"id": 1, "epoch": secrets.token_hex(16), "number": 0}])
    op.create_table(
        "change",
        sa.Column("revision", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("ordinal", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("nonce", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("object_id", sa.String(64), nullable=False),
        sa.Column("operation", sa.String(8), nullable=False),
        sa.Column("scope", sa.String(128), nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("revision", "ordinal", name="pk_change"),
    )
    op.create_table(
        "instance",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("hostname", sa.String(253), nullable=False),
        sa.Column("host", sa.String(63)),
        sa.Column("next_host", sa.String(63)),
        sa.Column("instance_type", sa.String(255)),
        sa.Column("image_id", sa.String(64)),
        sa.Column("availability_zone", sa.String(64)),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("updated_at", sa.String(27), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("user_data", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_instance"),
    )
    op.create_index("ix_instance_created_at_id", "instance", ["created_at", "id"])
    op.create_index(
        "ix_instance_project_id_created_at_id", "instance", ["project_id", "created_at", "id"]
    )
    op.create_index("ix_instance_host", "instance", ["host"])
    op.create_index("ix_instance_next_host", "instance", ["next_host"])
    op.create_table(
        "instance_address",
        sa.Column("network_id", sa.String(64), nullable=False),
        sa.Column("address", sa.String(45), nullable=False),
        sa.Column("instance_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("network_id", "address", name="pk_instance_address"),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
            name="fk_instance_address_instance_id",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_instance_address_address", "instance_address", ["address"])
    op.create_index("ix_instance_address_instance_id", "instance_address", ["instance_id"])
    op.create_table(
        "instance_password",
        sa.Column("instance_id", sa.String(36), nullable=False),
        sa.Column("password", sa.LargeBinary, nullable=False),
        sa.Column("set_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instance_password"),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instance.id"],
            name="fk_instance_password_instance_id",
            ondelete="CASCADE",
        ),
    )
