"""From arguments of Python to the configuration of a command."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tinygpt.base import threads
from tinygpt.base.configs.parse import ConfigType, from_values
from tinygpt.base.errors import TinyGPTError
from tinygpt.data.dataset import Dataset

ConfigFile = str | Path | Mapping[str, object]  # a config file, or its content


def settings_of(config_class: type[ConfigType], config: ConfigFile | None, options: Mapping[str, object]) -> ConfigType:
    files = [] if config is None or isinstance(config, Mapping) else [config]
    return config_of(config_class, *files, **{**(config if isinstance(config, Mapping) else {}), **options})


def absolute(path: str | Path) -> Path:
    """Make a path absolute, so that an object still finds it after os.chdir. Errors: TinyGPTError for a NUL in it."""
    if "\0" in str(path):
        raise TinyGPTError("a path cannot contain a NUL character", "name another file or folder")
    return Path(path).expanduser().absolute()


def require_known(function: str, options: Mapping[str, object], known: tuple[str, ...]) -> None:
    for name in options.keys() - known:
        hint = ", ".join(get_close_matches(name, known, n=1) or known)
        raise TinyGPTError(f"{function}: {name}: no such option", hint)


def config_of(config_class: type[ConfigType], /, *positionals: object, **options: Any) -> ConfigType:
    """Make a command's configuration from Python values, with the checks and messages of the command line."""
    threads.measure()
    if isinstance(dataset := options.get("dataset"), Dataset):
        options |= {"dataset": dataset.name, "data_dir": dataset.folder.parent}
    command = config_class.__name__.removesuffix("Config").lower()
    return from_values(config_class, positionals, options, f"tinygpt {command}")
