"""Flags of the commands that are proposed to a user: only those that differ from what a verb takes by itself."""

from smalti.data.datasets.open import ReadOptions, read_as


def reading_flags(config: ReadOptions) -> list[str]:
    """Flags for images to be read as these options say."""
    usual = ReadOptions()
    flags = {name: (str(getattr(usual, name)), str(value)) for name, value in read_as(config).items()}
    return [word for name, (was, now) in flags.items() for word in unless(was, f"--data.{name.replace('_', '-')}", now)]


def channel_flags(part: str, channels: int) -> list[str]:
    """Flags for images that are neither grey nor RGB, for which there are recipes."""
    return [] if channels in (1, 3) else ["--data.channels", str(channels), part, str(channels)]


def unless(default: str, flag: str, value: str) -> list[str]:
    """The flag with its value, if that is not the default."""
    return [] if value == default else [flag, value]
