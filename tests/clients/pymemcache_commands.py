"""Every command of pymemcache's Client against HOST PORT; prints ok at the end."""
import sys

from pymemcache.client.base import Client

host, port = sys.argv[1], int(sys.argv[2])
client = Client((host, port), connect_timeout=2, timeout=5)


def same(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: got {got!r}, expected {expected!r}")


client.flush_all(noreply=False)
same("set", client.set("a", b"1", noreply=False), True)
same("get", client.get("a"), b"1")
same("get of nothing", client.get("none"), None)
same("add of what is there", client.add("a", b"2", noreply=False), False)
same("add", client.add("b", b"2", noreply=False), True)
same("replace of nothing", client.replace("none", b"x", noreply=False), False)
same("replace", client.replace("b", b"3", noreply=False), True)
same("append", client.append("b", b"4", noreply=False), True)
same("prepend", client.prepend("b", b"2", noreply=False), True)
same("what they made", client.get("b"), b"234")

value, unique = client.gets("a")
same("gets", value, b"1")
same("cas", client.cas("a", b"5", unique, noreply=False), True)
same("cas with the old unique", client.cas("a", b"6", unique, noreply=False), False)
same("cas of nothing", client.cas("none", b"6", unique, noreply=False), None)

same("incr", client.incr("a", 10), 15)
same("decr", client.decr("a", 20), 0)
same("incr of nothing", client.incr("none", 1), None)
same("touch", client.touch("a", 100, noreply=False), True)
same("touch of nothing", client.touch("none", 100, noreply=False), False)

# Without a reply, as pymemcache does it unless told otherwise; the next reply shows the order.
for i in range(200):
    client.set(f"many{i}", b"%d" % i)
keys = [f"many{i}" for i in range(200)]
same("get_many", client.get_many(keys), {key: b"%d" % i for i, key in enumerate(keys)})
client.delete_many(keys)
same("delete_many", client.get_many(keys), {})
same("set_many", client.set_many({"x": b"1", "y": b"2"}, noreply=False), [])
same("gets_many", sorted(client.gets_many(["x", "y"])), ["x", "y"])
same("delete", client.delete("x", noreply=False), True)
same("delete of nothing", client.delete("x", noreply=False), False)

large = bytes(range(256)) * 2000
same("set of a large value", client.set("large", large, noreply=False), True)
same("get of a large value", client.get("large"), large)
client.set("gone", b"1", expire=-1, noreply=False)
same("what expired", client.get("gone"), None)

same("version", len(client.version()) > 0, True)
same("stats", client.stats()[b"curr_items"] > 0, True)
same("stats settings", b"maxconns" in client.stats("settings"), True)
same("flush_all", client.flush_all(noreply=False), True)
same("get after flush_all", client.get("large"), None)
client.quit()
print("ok")
