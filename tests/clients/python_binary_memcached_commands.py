"""python-binary-memcached against HOST PORT; prints ok at the end."""
import bmemcached
from bmemcached.exceptions import MemcachedException
from check import LARGE, fails, host, port, same

client = bmemcached.Client((f"{host}:{port}",), socket_timeout=5)
same("flush_all", client.flush_all(), True)
for value in ("text", b"bytes", 12345, {"a": [1, 2]}, "", LARGE[:1_000_000]):
    same("set", client.set("a", value), True)
    same(f"{type(value)}", client.get("a"), value)
same("get of nothing", client.get("none"), None)
same("get with a default", client.get("none", "default"), "default")
same("add of what is there", client.add("a", "x"), False)
same("add", client.add("b", "2"), True)
same("replace of nothing", client.replace("none", "x"), False)
same("replace", client.replace("b", "3"), True)
value, unique = client.gets("b")
same("gets", value, "3")
same("cas", client.cas("b", "4", unique), True)
same("cas with the old unique", client.cas("b", "5", unique), False)
same("incr of nothing makes it", client.incr("n", 5, default=10), 10)
same("incr", client.incr("n", 5), 15)
same("decr", client.decr("n", 20), 0)
many = {f"many{i}": f"value{i}" for i in range(300)}
same("set_multi", client.set_multi(many), [])
same("get_multi", client.get_multi(list(many) + ["none"]), many)
same("get_multi with uniques", len(client.get_multi(list(many), get_cas=True)), 300)
same("delete_multi", client.delete_multi(list(many)), True)
same("get_multi of nothing", client.get_multi(list(many)), {})
same("delete", client.delete("b"), True)
same("delete of nothing", client.delete("b"), True)
same("expired", (client.set("gone", "x", time=1 << 30), client.get("gone"))[1], None)
fails("too large", MemcachedException, client.set, "large", LARGE * 2, compress_level=0)
same("after it", client.get("none"), None)
stats = client.stats()[f"{host}:{port}"]
same("stats", int(stats["curr_items"]) > 0, True)
same("stats settings", "maxconns" in client.stats("settings")[f"{host}:{port}"], True)
client.disconnect_all()
same("after a new connection", client.get("n").strip(), "0")
print("ok")
