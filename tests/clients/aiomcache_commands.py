"""aiomcache against HOST PORT; prints ok at the end."""
import asyncio

import aiomcache
from aiomcache.exceptions import ClientException, ValidationException
from check import LARGE, host, port, same


async def fails(what, kind, awaitable):
    try:
        got = await awaitable
    except kind:
        return
    raise SystemExit(f"{what}: got {got!r:.200}, expected {kind}")


async def main():
    client = aiomcache.Client(host, port, pool_size=4)
    await client.flush_all()
    same("set", await client.set(b"a", b"1"), True)
    same("get", await client.get(b"a"), b"1")
    same("get of nothing", await client.get(b"none", b"default"), b"default")
    same("large", (await client.set(b"l", LARGE[:1_000_000]), await client.get(b"l"))[1],
         LARGE[:1_000_000])
    value, unique = await client.gets(b"a")
    same("cas", await client.cas(b"a", b"2", unique), True)
    same("cas with the old unique", await client.cas(b"a", b"3", unique), False)
    same("add of what is there", await client.add(b"a", b"x"), False)
    same("add", await client.add(b"b", b"2"), True)
    same("replace of nothing", await client.replace(b"none", b"x"), False)
    same("append", await client.append(b"b", b"3"), True)
    same("prepend", await client.prepend(b"b", b"1"), True)
    same("multi_get", await client.multi_get(b"a", b"none", b"b"), (b"2", None, b"123"))
    same("incr", await client.incr(b"a", 5), 7)
    same("decr", await client.decr(b"a", 20), 0)
    await fails("incr of a word", ClientException, client.incr(b"l"))
    await fails("blank in a key", ValidationException, client.get(b"a b"))
    same("touch", await client.touch(b"a", 100), True)
    same("touch of nothing", await client.touch(b"none", 100), False)
    same("gone", (await client.set(b"g", b"x", exptime=1), await client.delete(b"g"))[1], True)
    same("delete of nothing", await client.delete(b"g"), False)
    same("version", bytes(await client.version())[:4], b"1.6.")
    same("stats", int((await client.stats())[b"curr_items"]) > 0, True)
    same("stats settings", b"maxconns" in await client.stats(b"settings"), True)
    keys = [b"many%d" % idx for idx in range(200)]
    await asyncio.gather(*(client.set(key, key) for key in keys))
    same("many at once", await asyncio.gather(*(client.get(key) for key in keys)), keys)
    await client.close()
    print("ok")


asyncio.run(main())
