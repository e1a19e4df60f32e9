"""Who made a bundle: a signature over every file of it, by sigstore's `model-signing`.

`model.sig` lies in the bundle and is left out of what is signed. It is in sigstore's bundle format, so that
`model_signing verify` reads it too. Signing without a key asks an identity provider in the browser and enters the
signature into sigstore's public log, as https://docs.sigstore.dev describes.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from kerasvae.bundle import SIGNATURE, Bundle, read_bundle
from kerasvae.errors import ArgumentError
from kerasvae.storage import atomic_path

__all__ = ["PASSWORD", "Signer", "check_signature", "sign"]

PASSWORD = "KERASVAE_KEY_PASSWORD"
"""Environment variable with the password of an encrypted private key."""


class Signer(NamedTuple):
    """Whose signature is asked for.

    Attributes:
        key: Public key (PEM, elliptic curve).
        identity: Without a key: whom the identity provider named, e.g. an e-mail address.
        issuer: Without a key: the provider's URL.
    """

    key: Path | None = None
    identity: str | None = None
    issuer: str | None = None


def sign(path: str | os.PathLike[str], key: str | os.PathLike[str] | None = None) -> Path:
    """Sign a bundle that is as it was exported.

    Args:
        path: The bundle's folder.
        key: Private key (PEM, elliptic curve; its password in the environment variable of `PASSWORD`). None: sign as a
            person, through sigstore.

    Returns:
        The signature, `model.sig` in the bundle.

    Raises:
        BundleError: If a file was altered.
        ArgumentError: If the key cannot be used.
    """
    from model_signing import hashing, signing

    bundle = read_bundle(path)
    password = os.environ.get(PASSWORD)
    config = signing.Config().set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
    if key is not None:
        try:
            # as bytes, which what reads the key asks for, whatever the annotation says
            config.use_elliptic_key_signer(private_key=Path(key), password=password and password.encode())
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _unusable("private", key, error) from error
    signature = bundle.path / SIGNATURE
    with atomic_path(signature) as temporary:
        config.sign(bundle.path, temporary)
    return signature


def check_signature(bundle: Bundle, by: Signer | None) -> tuple[bool | None, str]:
    """Whether every file is as somebody signed it.

    Args:
        bundle: The bundle.
        by: Whose signature it must be; None asks for nobody's.

    Returns:
        True, False, or None where nothing can be said, and why.

    Raises:
        ArgumentError: If the key cannot be used.
    """
    there = (bundle.path / SIGNATURE).is_file()
    if by is None:
        return None, "signed; say whose signature it must be to have it checked" if there else "not signed"
    from model_signing import verifying

    config = verifying.Config()
    if by.key is not None:
        try:
            config.use_elliptic_key_verifier(public_key=by.key)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _unusable("public", by.key, error) from error
    else:
        config.use_sigstore_verifier(identity=by.identity, oidc_issuer=by.issuer)
    if not there:
        return False, "the bundle is not signed"
    try:
        config.verify(bundle.path, bundle.path / SIGNATURE)
    except Exception as error:  # a damaged signature, or sigstore out of reach, can fail in any way: none is a yes
        if changed := re.findall(r"mismatch for \\?'([^'\\]+)", str(error)):
            return False, f"not as signed: {', '.join(changed[:3])}"
        return False, f"the signature does not hold: {(str(error) or type(error).__name__)[:200]}"
    return True, f"every file is as signed by {by.key or by.identity}"


def _unusable(kind: str, key: str | os.PathLike[str], error: Exception) -> ArgumentError:
    return ArgumentError(
        "--key",
        rule=f"be a readable {kind} key of an elliptic curve, PEM",
        got=f"{key}: {error}",
        fix=f"Check the file, and {PASSWORD} if it is encrypted" if kind == "private" else "Check the file",
    )
