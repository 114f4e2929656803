"""The version, where everything may read it without importing the public names."""

VERSION = "0.1.0"
