"""Search spaces: one TOML file each."""
