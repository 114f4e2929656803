"""Target profiles: one TOML file each."""
