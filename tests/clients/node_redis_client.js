// A conversation of node-redis with the RESP port: node_redis_client.js PORT.
const assert = require("node:assert");
const { createClient, WatchError } = require("redis");

async function conversation(options) {
  const r = createClient({ socket: { port: Number(process.argv[2]) }, name: "node-redis", ...options });
  r.on("error", () => {});
  await r.connect();
  await r.flushAll();
  assert.equal(await r.set("a", "1"), "OK");
  assert.equal(await r.set("a", "2", { NX: true }), null);
  assert.equal(await r.get("a"), "1");
  assert.equal(await r.incrBy("a", 9), 10);
  assert.deepEqual(await r.mGet(["a", "none"]), ["10", null]);
  await r.set("t", "x", { EX: 100 });
  assert((await r.ttl("t")) > 90);
  const many = await Promise.all(Array.from({ length: 300 }, (_, i) => r.set(`p:${i}`, String(i))));
  assert(many.every((reply) => reply === "OK"));
  assert.deepEqual(await r.multi().incr("n").incr("n").exec(), [1, 2]);
  const other = r.duplicate();
  other.on("error", () => {});
  await other.connect();
  await r.watch("n");
  await other.incr("n");
  await assert.rejects(r.multi().set("n", "0").exec(), WatchError);
  let found = 0;
  for await (const keys of r.scanIterator({ MATCH: "p:*", COUNT: 50 })) found += [keys].flat().length;
  assert.equal(found, 300);
  await assert.rejects(r.hSet("h", "f", "v"), /unknown command/);
  const listener = r.duplicate();
  listener.on("error", () => {});
  await listener.connect();
  const message = new Promise((resolve) => listener.subscribe("news", resolve));
  await new Promise((resolve) => setTimeout(resolve, 50));
  await r.publish("news", "hi");
  assert.equal(await message, "hi");
  // A lost connection.
  await other.sendCommand(["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
  let value;
  for (let i = 0; i < 50 && value === undefined; i++) {
    try {
      value = await r.get("a");
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  assert.equal(value, "10");
  for (const each of [r, other, listener]) each.destroy();
}

(async () => {
  await conversation({});
  await conversation({ RESP: 2 });
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
