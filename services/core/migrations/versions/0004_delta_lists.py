"""The delta beside the complete revocation list of its number, and an index of what has changed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the newest delta of each authority, and an index of what has changed."""
    op.create_table(
        "ca_delta",
        sa.Column("authority_id", sa.String(40), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("base_number", sa.BigInteger, nullable=False),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("this_update", sa.String(27), nullable=False),
        sa.Column("next_update", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("authority_id", name="pk_ca_delta"),
    )
    changed = sa.text("status_number IS NOT NULL")
    op.create_index(
        "ix_ca_certificate_authority_id_status_number",
        "ca_certificate",
        ["authority_id", "status_number"],
        sqlite_where=changed,
        postgresql_where=changed,
    )
    op.drop_column("ca_crl", "base_number")
