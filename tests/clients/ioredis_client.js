// A conversation of ioredis with the RESP port: ioredis_client.js PORT.
const assert = require("node:assert");
const { Redis } = require("ioredis");

async function conversation(options) {
  const port = Number(process.argv[2]);
  const r = new Redis({ port, connectionName: "ioredis", ...options });
  await r.flushall();
  assert.equal(await r.set("a", "1"), "OK");
  assert.equal(await r.set("a", "2", "EX", 100, "NX"), null);
  assert.equal(await r.get("a"), "1");
  assert.equal(await r.incrby("a", 9), 10);
  assert.deepEqual(await r.mget("a", "none"), ["10", null]);
  await r.set("t", "x", "PX", 100000);
  assert((await r.pttl("t")) > 90000);
  assert.equal(await r.ttl("none"), -2);
  await r.set(Buffer.from([0, 255]), Buffer.from("\r\n"));
  assert.deepEqual(await r.getBuffer(Buffer.from([0, 255])), Buffer.from("\r\n"));
  const pipeline = r.pipeline();
  for (let i = 0; i < 300; i++) pipeline.set(`p:${i}`, i);
  pipeline.get("p:299");
  const results = await pipeline.exec();
  assert.deepEqual(results[300], [null, "299"]);
  assert.deepEqual(await r.multi().incr("n").incr("n").exec(), [[null, 1], [null, 2]]);
  const other = r.duplicate();
  await r.watch("n");
  await other.incr("n");
  assert.equal(await r.multi().set("n", 0).exec(), null);
  let found = 0;
  for await (const keys of r.scanStream({ match: "p:*", count: 50 })) found += keys.length;
  assert.equal(found, 300);
  await assert.rejects(r.hset("h", "f", "v"), /unknown command/);
  const listener = r.duplicate();
  await listener.subscribe("news");
  const message = new Promise((resolve) => listener.on("message", (channel, text) => resolve(text)));
  await r.publish("news", "hi");
  assert.equal(await message, "hi");
  // A lost connection.
  await other.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
  assert.equal(await r.get("a"), "10");
  for (const each of [r, other, listener]) each.disconnect();
}

(async () => {
  await conversation({});
  await conversation({ db: 2 });
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
