"""The servers that the other tests stand on."""

import boto3
import pytest
import redis

from tests.servers import NatsServer, S3Server, ValkeyServer, streams_of

pytestmark = pytest.mark.integration


def test_nats_answers_with_the_shipped_configuration(nats_server: NatsServer) -> None:
    assert streams_of(nats_server) == []


@pytest.mark.parametrize("kill", [False, True])
def test_nats_comes_back_on_the_same_port(nats_server: NatsServer, kill: bool) -> None:
    before = nats_server.pid, nats_server.url("worker")
    nats_server.restart(kill=kill)
    assert nats_server.pid != before[0]
    assert nats_server.url("worker") == before[1]


def test_valkey_keeps_its_keys_over_an_orderly_restart(valkey_server: ValkeyServer) -> None:
    with redis.Redis.from_url(valkey_server.url) as client:
        client.set("kept", "yes")
    valkey_server.restart()
    with redis.Redis.from_url(valkey_server.url) as client:
        assert client.get("kept") == b"yes"
        client.delete("kept")


def test_valkey_refuses_a_client_without_the_password(valkey_server: ValkeyServer) -> None:
    with redis.Redis(port=valkey_server.port) as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_s3_keeps_an_object(s3_server: S3Server) -> None:
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    client.create_bucket(Bucket="blobs")
    client.put_object(Bucket="blobs", Key="k", Body=b"v")
    assert client.get_object(Bucket="blobs", Key="k")["Body"].read() == b"v"
