"""TLS settings for connections to analyzers: trusted authorities and the client certificate."""

import ssl

from skyfast.config.model import TLS
from skyfast.config.yaml_nodes import ConfigError

NOT_A_PAIR = "are not a matching PEM certificate and key"
"""The end of the error message if a certificate and a key cannot be loaded."""


class EncryptedKeyError(ValueError):
    """A private key is encrypted.

    The text of the error continues a sentence that begins with the path of the key.
    """


def client_context(tls: TLS) -> ssl.SSLContext:
    """Return the TLS settings as an SSL context. Blocks, because the files are read.

    If ``ca_cert`` is set, its authorities are trusted instead of the system's authorities.

    Raises:
        ConfigError: A file cannot be read, or its content is invalid.

    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_cert or None)
    except (OSError, ValueError) as exc:
        problem = f"does not contain PEM certificates{failure(exc)}"
        raise ConfigError(f"tls.ca_cert: {tls.ca_cert!r} {problem}") from None
    # As in Go's TLS client, certificates in ca_cert are trusted even if they are not self-signed.
    # Authorities may lack extensions that Python 3.13 requires.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if tls.client_cert:
        try:
            context.load_cert_chain(
                tls.client_cert, tls.client_key or None, password=refuse_password
            )
        except EncryptedKeyError as exc:
            raise ConfigError(f"tls.client_key: {tls.client_key!r} {exc}") from None
        except (OSError, ValueError) as exc:
            raise ConfigError(
                f"tls.client_cert: {tls.client_cert!r} and {tls.client_key!r}"
                f" {NOT_A_PAIR}{failure(exc)}"
            ) from None
    return context


def refuse_password() -> str:
    """Raise `EncryptedKeyError` instead of returning the password of a private key.

    Without this callback, OpenSSL would ask for a password on the terminal, and a daemon would
    hang.
    """
    raise EncryptedKeyError("is encrypted; skyfast needs an unencrypted key")


def failure(exc: Exception) -> str:
    """Return why PEM files could not be loaded, in parentheses; "" if the reason is unknown."""
    if isinstance(exc, ssl.SSLError):
        reason = exc.reason or ""  # str(exc) contains a line number of CPython's source
    else:
        reason = str(getattr(exc, "strerror", None) or exc)
    return f" ({reason})" if reason else ""
