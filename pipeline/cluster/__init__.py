"""The stages of a profile on many machines: Ray carries them, DVC runs and records each."""
