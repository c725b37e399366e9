"""TLS settings for connections to analyzers: trusted authorities and the client certificate."""

import ssl

from skyfast.config.model import TLS
from skyfast.config.yaml_nodes import ConfigError


def client_context(tls: TLS) -> ssl.SSLContext:
    """Blocks, because the files are read.

    If ``ca_cert`` is set, its authorities are trusted instead of the system's authorities.

    Raises:
        ConfigError: A file cannot be read, or its content is invalid.

    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_cert or None)
    except (OSError, ValueError) as exc:
        raise _error("tls.ca_cert", tls.ca_cert, "PEM certificates", exc) from None
    # Like Go's TLS client: certificates in ca_cert are trusted even if they are not self-signed.
    # Authorities may lack extensions that Python 3.13 requires.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if tls.client_cert:
        try:
            context.load_cert_chain(
                tls.client_cert, tls.client_key or None, password=_refuse_password
            )
        except (OSError, ValueError) as exc:
            raise _error(
                "tls.client_cert", tls.client_cert, "a PEM certificate for tls.client_key", exc
            ) from None
    return context


def _refuse_password() -> str:
    # Without this callback, OpenSSL would ask for a password on the terminal, and a daemon would
    # hang.
    raise ValueError("the key is encrypted")


def _error(key: str, path: str, allowed: str, exc: Exception) -> ConfigError:
    if isinstance(exc, ssl.SSLError):
        reason = exc.reason or ""  # str(exc) contains a line number of CPython's source
    else:
        reason = str(getattr(exc, "strerror", None) or exc)
    return ConfigError(f"{key}: {path!r} does not contain {allowed}{reason and f' ({reason})'}")
