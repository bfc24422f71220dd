"""Django's two memcached backends, and its sessions, against HOST PORT; prints ok at the end."""
import time

import django
import pylibmc
from check import LARGE, fails, host, port, same
from django.conf import settings
from pymemcache.exceptions import MemcacheServerError

BACKENDS = {
    "default": "django.core.cache.backends.memcached.PyMemcacheCache",
    "pylibmc": "django.core.cache.backends.memcached.PyLibMCCache",
}
settings.configure(
    CACHES={
        name: {"BACKEND": backend, "LOCATION": f"{host}:{port}", "KEY_PREFIX": name}
        for name, backend in BACKENDS.items()
    },
    INSTALLED_APPS=["django.contrib.sessions"],
    SESSION_ENGINE="django.contrib.sessions.backends.cache",
    SECRET_KEY="x",
)
django.setup()

from django.contrib.sessions.backends.cache import SessionStore  # noqa: E402
from django.core.cache import InvalidCacheKey, caches  # noqa: E402

for name in BACKENDS:
    cache = caches[name]
    cache.clear()
    for value in ("text", 7, True, None, {"a": [1]}, LARGE[:900_000]):
        cache.set("a", value)
        same(f"{name} {type(value)}", cache.get("a", "missing"), value)
    same(f"{name} add of what is there", cache.add("a", 1), False)
    same(f"{name} add", cache.add("b", 1), True)
    same(f"{name} incr", cache.incr("b", 5), 6)
    same(f"{name} decr", cache.decr("b", 2), 4)
    fails(f"{name} incr of nothing", ValueError, cache.incr, "none")
    many = {f"many{i}": i for i in range(100)}
    same(f"{name} set_many", cache.set_many(many), [])
    same(f"{name} get_many", cache.get_many(list(many)), many)
    cache.delete_many(list(many))
    same(f"{name} get_many after", cache.get_many(list(many)), {})
    same(f"{name} touch", cache.touch("a", 100), True)
    same(f"{name} touch of nothing", cache.touch("none", 100), False)
    cache.set("gone", 1, timeout=0)
    same(f"{name} timeout 0", cache.get("gone"), None)
    cache.set("gone", 1, timeout=-5)
    same(f"{name} in the past", cache.get("gone"), None)
    cache.set("long", 1, timeout=60 * 60 * 24 * 31)
    same(f"{name} over 30 days", cache.get("long"), 1)
    cache.set("ever", 1, timeout=None)
    same(f"{name} for ever", cache.get("ever"), 1)
    try:
        cache.set("a", "x" * 2_000_000)
    except (MemcacheServerError, pylibmc.Error):
        pass
    same(f"{name} after what is too large", cache.get("a"), None)
    same(f"{name} delete", cache.delete("b"), True)
    same(f"{name} get_or_set", cache.get_or_set("made", lambda: 9), 9)
    same(f"{name} versions", (cache.set("v", 1, version=2), cache.get("v"))[1], None)
    same(f"{name} has_key", "made" in cache, True)
    fails(f"{name} blank in a key", InvalidCacheKey, cache.get, "a b")

session = SessionStore()
session["user"] = 42
session.set_expiry(1)
session.create()
again = SessionStore(session.session_key)
same("session", again["user"], 42)
again["cart"] = list(range(1000))
again.save()
same("saved session", len(SessionStore(session.session_key)["cart"]), 1000)
deadline = time.monotonic() + 10
while SessionStore(session.session_key).load():
    if time.monotonic() > deadline:
        raise SystemExit("an expired session is there after ten seconds")
    time.sleep(0.05)
print("ok")
