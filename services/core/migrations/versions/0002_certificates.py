"""Certificates: ledger, revocation lists, enrolment tokens, audit trail, ACME."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables of the certificate service."""
    op.create_table(
        "ca_authority",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("not_after", sa.String(27), nullable=False),
        sa.Column("crl_number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ca_authority"),
    )
    op.create_table(
        "ca_certificate",
        sa.Column("authority_id", sa.String(40), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("profile", sa.String(32), nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("common_name", sa.String(255), nullable=False),
        sa.Column("names", sa.Text, nullable=False),
        sa.Column("key_id", sa.String(40), nullable=False),
        sa.Column("tbs_digest", sa.String(64), nullable=False),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("der", sa.LargeBinary),
        sa.Column("not_before", sa.String(27), nullable=False),
        sa.Column("not_after", sa.String(27), nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("requested_by", sa.String(255), nullable=False),
        sa.Column("revoked_at", sa.String(27)),
        sa.Column("reason", sa.String(24)),
        sa.Column("status_number", sa.BigInteger),
        sa.PrimaryKeyConstraint("authority_id", "serial", name="pk_ca_certificate"),
    )
    op.create_index(
        "ix_ca_certificate_authority_id_revoked_at",
        "ca_certificate",
        ["authority_id", "revoked_at"],
    )
    op.create_index("ix_ca_certificate_common_name", "ca_certificate", ["common_name"])
    op.create_index(
        "ix_ca_certificate_created_at_serial", "ca_certificate", ["created_at", "serial"]
    )
    op.create_index("ix_ca_certificate_fingerprint", "ca_certificate", ["fingerprint"], unique=True)
    op.create_index("ix_ca_certificate_not_after", "ca_certificate", ["not_after"])
    op.create_table(
        "ca_certificate_name",
        sa.Column("authority_id", sa.String(40), nullable=False),
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("kind", sa.String(4), nullable=False),
        sa.Column("value", sa.String(255), nullable=False),
        sa.PrimaryKeyConstraint(
            "authority_id", "serial", "kind", "value", name="pk_ca_certificate_name"
        ),
    )
    op.create_index("ix_ca_certificate_name_value", "ca_certificate_name", ["value"])
    op.create_table(
        "ca_crl",
        sa.Column("authority_id", sa.String(40), nullable=False),
        sa.Column("number", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("base_number", sa.BigInteger),
        sa.Column("der", sa.LargeBinary, nullable=False),
        sa.Column("this_update", sa.String(27), nullable=False),
        sa.Column("next_update", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("authority_id", "number", name="pk_ca_crl"),
    )
    op.create_table(
        "ca_token",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("expires_at", sa.String(27), nullable=False),
        sa.Column("used_at", sa.String(27)),
        sa.Column("used_for", sa.String(40)),
        sa.PrimaryKeyConstraint("id", name="pk_ca_token"),
    )
    op.create_index("ix_ca_token_digest", "ca_token", ["digest"], unique=True)
    op.create_table(
        "ca_audit",
        sa.Column("sequence", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("at", sa.String(27), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_ca_audit"),
    )
    op.create_table(
        "acme_account",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("key_thumbprint", sa.String(64), nullable=False),
        sa.Column("jwk", sa.Text, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("contact", sa.Text, nullable=False),
        sa.Column("external_id", sa.String(64)),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_acme_account"),
    )
    op.create_index(
        "ix_acme_account_key_thumbprint", "acme_account", ["key_thumbprint"], unique=True
    )
    op.create_table(
        "acme_external_key",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("rules", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("created_by", sa.String(255), nullable=False),
        sa.Column("used_at", sa.String(27)),
        sa.PrimaryKeyConstraint("id", name="pk_acme_external_key"),
    )
    op.create_table(
        "acme_order",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("identifiers", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("authority_id", sa.String(40)),
        sa.Column("serial", sa.String(40)),
        sa.Column("created_at", sa.String(27), nullable=False),
        sa.Column("expires_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_acme_order"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["acme_account.id"], name="fk_acme_order_account_id"
        ),
    )
    op.create_index("ix_acme_order_account_id", "acme_order", ["account_id"])
    op.create_table(
        "acme_authorization",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("order_id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("value", sa.String(255), nullable=False),
        sa.Column("wildcard", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("expires_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_acme_authorization"),
        sa.ForeignKeyConstraint(
            ["order_id"], ["acme_order.id"], name="fk_acme_authorization_order_id"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["acme_account.id"], name="fk_acme_authorization_account_id"
        ),
    )
    op.create_index("ix_acme_authorization_order_id", "acme_authorization", ["order_id"])
    op.create_table(
        "acme_challenge",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("authorization_id", sa.String(36), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("token", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("validated_at", sa.String(27)),
        sa.Column("error", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_acme_challenge"),
        sa.ForeignKeyConstraint(
            ["authorization_id"],
            ["acme_authorization.id"],
            name="fk_acme_challenge_authorization_id",
        ),
    )
    op.create_index("ix_acme_challenge_authorization_id", "acme_challenge", ["authorization_id"])
    op.create_table(
        "acme_nonce",
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.String(27), nullable=False),
        sa.PrimaryKeyConstraint("nonce", name="pk_acme_nonce"),
    )
    op.create_index("ix_acme_nonce_expires_at", "acme_nonce", ["expires_at"])
