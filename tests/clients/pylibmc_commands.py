"""Every command of pylibmc against HOST PORT, in binary if that word follows; prints ok at the end."""
import sys

import pylibmc

host, port = sys.argv[1], int(sys.argv[2])
client = pylibmc.Client([f"{host}:{port}"], binary="binary" in sys.argv[3:])
# Milliseconds to connect, microseconds to send and to receive.
client.behaviors = {"connect_timeout": 2000, "send_timeout": 5000000,
                    "receive_timeout": 5000000, "cas": True}


def same(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: got {got!r}, expected {expected!r}")


def refused(command, *arguments):
    """Whether it stores nothing: text says false, binary raises the reason."""
    try:
        return not command(*arguments)
    except (pylibmc.NotFound, pylibmc.DataExists):
        return True


same("flush_all", client.flush_all(), True)
same("set", client.set("a", "one"), True)
same("get", client.get("a"), "one")
same("get of nothing", client.get("none"), None)
# Types travel in the client flags.
for value in [b"bytes", "text", 12345, True, {"a": [1, 2, 3]}, 1 << 70]:
    client.set("typed", value)
    same(f"{type(value)}", client.get("typed"), value)
same("add of what is there", refused(client.add, "a", "x"), True)
same("add", client.add("b", "2"), True)
same("replace of nothing", refused(client.replace, "none", "x"), True)
same("replace", client.replace("b", "3"), True)
same("append", client.append("b", "4"), True)
same("prepend", client.prepend("b", "2"), True)
same("what they made", client.get("b"), "234")

value, unique = client.gets("a")
same("gets", value, "one")
same("cas", client.cas("a", "two", unique), True)
same("cas with the old unique", client.cas("a", "three", unique), False)

client.set("n", 10)
same("incr", client.incr("n", 5), 15)
same("decr", client.decr("n", 20), 0)
same("touch", client.touch("a", 100), True)
try:
    client.incr("none")
    sys.exit("incr of nothing did not fail")
except pylibmc.NotFound:
    pass

many = {f"many{i}": i for i in range(200)}
same("set_multi", client.set_multi(many), [])
same("get_multi", client.get_multi(list(many)), many)
same("delete_multi", client.delete_multi(list(many)), True)
same("get_multi of nothing", client.get_multi(list(many)), {})
same("delete", client.delete("b"), True)
same("delete of nothing", client.delete("b"), False)

large = bytes(range(256)) * 2000
same("set of a large value", client.set("large", large), True)
same("get of a large value", client.get("large"), large)
(server, stats), = client.get_stats()
same("stats", int(stats["curr_items"]) > 0, True)
print("ok")
