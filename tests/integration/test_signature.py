"""A signed bundle: whose signature holds, and what breaks it."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kerasvae import VAE, dense_decoder, dense_encoder
from kerasvae.cli import main
from kerasvae.errors import ArgumentError, BundleError
from kerasvae_export import Signer, export, sign, verify
from kerasvae_export.signature import PASSWORD

PRIVATE = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)


def write_keys(folder, name, key, protection=None):
    protection = protection or serialization.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(*PRIVATE, protection))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = VAE(dense_encoder((6,), 4), dense_decoder((6,), 2))
    return export(model, None, tmp_path_factory.mktemp("exported") / "bundle", train_images=np.eye(6, dtype="f4") * 9)


@pytest.fixture
def bundle(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "bundle")


def signature(bundle, by=None):
    return next(check for check in verify(bundle, "onnx", signed_by=by) if check.name == "signature")


def test_a_signature_holds_for_its_key_and_its_files_alone(bundle, tmp_path):
    assert signature(bundle)[1:] == (None, "not signed")
    private, public = write_keys(tmp_path, "ours", ec.generate_private_key(ec.SECP256R1()))
    _, others = write_keys(tmp_path, "others", ec.generate_private_key(ec.SECP384R1()))
    assert signature(bundle, Signer(public))[1:] == (False, "the bundle is not signed")
    assert sign(bundle, private) == bundle / "model.sig"
    assert [check.name for check in verify(bundle, "onnx", signed_by=Signer(public)) if check.ok is False] == []
    assert signature(bundle, Signer(public)).ok
    assert signature(bundle).ok is None
    assert signature(bundle, Signer(others)).ok is False
    elsewhere = shutil.copytree(bundle, tmp_path / "under another name")
    assert signature(elsewhere, Signer(public)).ok
    # the tool of the signature's own makers reads it too
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(bundle)]
    command += ["--signature", str(bundle / "model.sig"), "--public_key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # a manifest that names an altered file as its own does not help
    manifest = bundle / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "vae"', '"name": "eav"'))
    found = signature(bundle, Signer(public))
    assert found.ok is False
    assert "manifest.json" in found.detail
    sign(bundle, private)
    assert signature(bundle, Signer(public)).ok
    (bundle / "added.txt").write_text("x")
    assert "added.txt" in signature(bundle, Signer(public)).detail
    with pytest.raises(BundleError, match=r"added\.txt is not in the manifest"):
        sign(bundle, private)
    (bundle / "model.sig").write_text("{}")
    assert signature(bundle, Signer(public)).ok is False


def test_keys_that_cannot_be_used(bundle, tmp_path, monkeypatch):
    private, public = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    locked, its_public = write_keys(
        tmp_path, "locked", ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"secret")
    )
    for key in (private, tmp_path / "absent", locked, its_public):
        with pytest.raises(ArgumentError, match="private key of an elliptic curve"):
            sign(bundle, key)
    assert not (bundle / "model.sig").exists()
    monkeypatch.setenv(PASSWORD, "secret")
    sign(bundle, locked)
    assert signature(bundle, Signer(its_public)).ok
    for key in (public, tmp_path / "absent", locked):
        with pytest.raises(ArgumentError, match="public key of an elliptic curve"):
            verify(bundle, signed_by=Signer(key))


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--engine", "onnx"], 0, "signed; say whose"),
        (["--engine", "onnx", "--key", "ours.pub"], 0, "every file is as signed"),
        (["--engine", "onnx", "--key", "others.pub"], 1, "does not hold"),
        (["--key", "absent.pub"], 2, "--key must be a readable public key"),
        (["--identity", "someone@example.org"], 2, "--identity together with --issuer"),
    ],
)
def test_the_commands(bundle, tmp_path, monkeypatch, capsys, options, status, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    write_keys(tmp_path, "ours", ec.generate_private_key(ec.SECP256R1()))
    write_keys(tmp_path, "others", ec.generate_private_key(ec.SECP256R1()))
    for arguments, expected in (
        (["sign", str(bundle), "--key", "ours.pem"], 0),
        (["verify", "bundle", *options], status),
    ):
        monkeypatch.setattr("sys.argv", ["kerasvae", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == expected
    printed = capsys.readouterr()
    assert words in printed.out + printed.err
