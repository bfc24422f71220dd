"""pymemcache's other clients against HOST PORT: pooled, hashing, retrying; prints ok at the end."""
import time

from check import LARGE, fails, host, port, same
from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.client.retrying import RetryingClient
from pymemcache.exceptions import (MemcacheClientError, MemcacheIllegalInputError,
                                   MemcacheServerError)
from pymemcache.serde import pickle_serde

server = (host, port)
kinds = {
    "Client": Client(server, timeout=5, serde=pickle_serde),
    "PooledClient": PooledClient(server, timeout=5, max_pool_size=4, serde=pickle_serde),
    "HashClient": HashClient([server], timeout=5, use_pooling=True, serde=pickle_serde),
    "RetryingClient": RetryingClient(Client(server, timeout=5, serde=pickle_serde), attempts=2),
}
for name, client in kinds.items():
    key = f"kind:{name}"
    same(f"{name} set", client.set(key, {"a": [1, 2]}, noreply=False), True)
    same(f"{name} get", client.get(key), {"a": [1, 2]})
    for value in (b"", b"bytes", "text", 7, LARGE[:1_000_000], None):
        client.set(key, value)
        same(f"{name} {type(value)}", client.get(key), value)
    same(f"{name} set_many", client.set_many({f"{key}:{i}": i for i in range(300)}), [])
    keys = [f"{key}:{i}" for i in range(300)]
    same(f"{name} get_many", client.get_many(keys), {k: i for i, k in enumerate(keys)})
    client.delete_many(keys)
    same(f"{name} get_many after", client.get_many(keys), {})
    client.set(key, 5)
    same(f"{name} incr", client.incr(key, 3), 8)
    same(f"{name} touch", client.touch(key, expire=100, noreply=False), True)
    value, unique = client.gets(key)
    same(f"{name} cas", client.cas(key, "new", unique, noreply=False), True)
    same(f"{name} cas again", client.cas(key, "new", unique, noreply=False), False)
    client.set(key, "gone", expire=100)
    same(f"{name} delete", client.delete(key, noreply=False), True)

plain = kinds["Client"]
fails("key with a blank", MemcacheIllegalInputError, plain.set, "a b", b"x")
fails("long key", MemcacheIllegalInputError, plain.get, "k" * 251)
fails("incr of a word", MemcacheClientError, lambda: (plain.set("w", "x"), plain.incr("w", 1)))
same("unusual keys", plain.set("k\u00e9y".encode(), b"1", noreply=False), True)
fails("too large", MemcacheServerError, plain.set, "large", LARGE * 2, noreply=False)
same("after it", plain.get("kind:none"), None)
same("cache_memlimit", plain.cache_memlimit(64), True)
same("stats items", isinstance(plain.stats("items"), dict), True)
same("stats settings", plain.stats("settings")[b"maxconns"] > 0, True)

plain.set("short", b"1", expire=1, noreply=False)
deadline = time.monotonic() + 10
while plain.get("short") is not None:
    if time.monotonic() > deadline:
        raise SystemExit("what lives a second is there after ten")
    time.sleep(0.05)

# A connection that the server has closed is opened anew.
plain.quit()
same("after quit", plain.get("none"), None)
print("ok")
