"""TLS settings for ``wss://`` and ``https://``: authorities and the client certificate."""

import ssl

from skyfast.config.model import TLS
from skyfast.config.yaml_nodes import ConfigError


def client_context(tls: TLS) -> ssl.SSLContext:
    """Return the context for connections to analyzers.

    ``ca_cert``, where set, is trusted instead of the system's authorities. Host names are
    checked. This blocks: it reads the files.

    Raises:
        ConfigError: A file does not hold what its key says.

    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_cert or None)
    except (OSError, ValueError) as exc:
        raise _error("tls.ca_cert", tls.ca_cert, "PEM certificates", exc) from None
    # As the Go connector reads it: a certificate in ca_cert is trusted whether or not it is
    # self-signed, and authorities without the extensions that Python 3.13 asks for are accepted.
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
    # Without this, OpenSSL asks the terminal, and a daemon hangs.
    raise ValueError("the key is encrypted")


def _error(key: str, path: str, allowed: str, exc: Exception) -> ConfigError:
    if isinstance(exc, ssl.SSLError):
        reason = exc.reason or ""  # str() of it names a line of Python's own source
    else:
        reason = str(getattr(exc, "strerror", None) or exc)
    return ConfigError(f"{key}: {path!r} does not contain {allowed}{reason and f' ({reason})'}")
