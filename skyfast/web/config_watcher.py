"""Reloads the web configuration when its file, a certificate or a key changes."""

import asyncio
import logging
from collections.abc import Callable

from skyfast.config.file_state import Files, have_changed
from skyfast.config.yaml_nodes import (
    ConfigError,
    file_name,
)
from skyfast.web.config_file import WebConfig, read

log = logging.getLogger("skyfast.web_config")


class WebConfigFile:
    """The web configuration in use.

    While the process runs, TLS cannot be switched on or off, and authentication cannot be switched
    off. Otherwise, an editor that empties the file before it writes would disable security.
    """

    def __init__(self, path: str, *, on_change: Callable[[WebConfig], None]) -> None:
        """Read the file at ``path`` (blocking).

        ``on_change`` is called with the configuration at once, and with the new configuration after
        each reload.

        Raises:
            ConfigError: The file is invalid.

        """
        self._path = path
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self.use(read(path))

    def read(self) -> WebConfig:
        """Read the file again without applying it (blocking).

        Raises:
            ConfigError: The file is invalid, or the change requires a restart.

        """
        files: Files = {}
        try:
            config = read(self._path, files=files)
            self._check_change(config)
        except ConfigError:
            self._files = files  # so that `refresh` tries again only after a file has changed
            raise
        return config

    def _check_change(self, config: WebConfig) -> None:
        if (self.config.tls is None) != (config.tls is None):
            raise self._needs_restart(
                "tls_server_config", "removed" if self.config.tls else "added"
            )
        if self.config.users and not config.users:
            raise self._needs_restart("basic_auth_users", "removed")

    def use(self, config: WebConfig) -> None:
        """Apply ``config`` to new connections and requests."""
        self._on_change(config)
        self.config = config
        self._files = config.files

    async def refresh(self) -> WebConfig:
        """Return the configuration in use. If files have changed, try to reload them first."""
        if self._changed():
            async with self._lock:
                if self._changed():
                    await self._reload()
        return self.config

    async def _reload(self) -> None:
        try:
            config = await asyncio.to_thread(self.read)
        except ConfigError as error:
            log.error("web configuration not reloaded: %s", error)
        else:
            self.use(config)
            log.info("web configuration reloaded: %s", config.summary())

    def _changed(self) -> bool:
        return have_changed(self._files)

    def _needs_restart(self, key: str, change: str) -> ConfigError:
        return ConfigError(f"{file_name(self._path)}: {key} cannot be {change} without a restart")
