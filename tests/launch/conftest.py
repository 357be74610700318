"""`launch` is not an installed package: it is imported from the working tree."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))


@pytest.fixture(scope="module")  # its variables must not reach other tests
def cloud_home(tmp_path_factory):
    """Makes a home with made-up credentials and XManager's database."""
    from absl import flags
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    from launch import tpu_handles

    folder = tmp_path_factory.mktemp("home")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "client_email": "a@project.iam.gserviceaccount.com", "private_key": pem}
    account |= {"project_id": "project", "token_uri": "https://oauth2.googleapis.com/token"}
    (folder / "account.json").write_text(json.dumps(account))
    cluster = {"name": "c", "cluster": {"server": "https://cluster.test"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
    config |= {"current-context": "c", "users": [{"name": "u", "user": {"token": "t"}}]}
    (folder / ".kube").mkdir()
    (folder / ".kube" / "config").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.setenv("KUBECONFIG", str(folder / ".kube" / "config"))
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(folder / "account.json"))
        patch.setattr(tpu_handles, "POLL_SECONDS", 0.0)
        flags.FLAGS(["xm_launch"])
        yield folder


@pytest.fixture
def cluster(monkeypatch, cloud_home):
    """Makes a cluster that gets all requests to Kubernetes."""
    import urllib3
    from helpers.fake_clouds import Cluster

    def make(**keywords):
        made = Cluster(**keywords)
        monkeypatch.setattr(urllib3.PoolManager, "request", lambda *words, **more: made.request(*words, **more))
        return made

    return make


@pytest.fixture
def google(monkeypatch, cloud_home):
    """Makes a service that gets all requests to Google Cloud."""
    import requests
    from helpers.fake_clouds import Google

    def make(kind=Google, **keywords):
        made = kind(**keywords)
        adapter = requests.adapters.HTTPAdapter
        monkeypatch.setattr(adapter, "send", lambda _adapter, *words, **more: made.send(*words, **more))
        return made

    return make
