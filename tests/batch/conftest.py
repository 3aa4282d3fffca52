"""An object store on loopback: moto's server, where that is installed."""

from collections.abc import Iterator

import pytest

from batchfer import stores
from batchfer.stores import Url


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    own = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    own.start()
    host, port = own.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        stores._connect.cache_clear()
        yield f"{host}:{port}"
    stores._connect.cache_clear()
    own.stop()


@pytest.fixture
def bucket(server: str, request: pytest.FixtureRequest) -> Url:
    """An empty bucket."""
    from pyarrow.fs import FileSystem

    name = f"b{abs(hash(request.node.nodeid))}"
    system, _ = FileSystem.from_uri(f"s3://{name}?allow_bucket_creation=true")
    system.create_dir(name)
    return Url.parse(f"s3://{name}")
