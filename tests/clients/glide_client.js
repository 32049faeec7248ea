// A conversation of valkey-glide with the RESP port: glide_client.js PORT.
const assert = require("node:assert");
const { GlideClient, Batch, ProtocolVersion, TimeUnit } = require("@valkey/valkey-glide");

const port = Number(process.argv[2]);
const connect = (options) =>
  GlideClient.createClient({ addresses: [{ host: "127.0.0.1", port }], clientName: "glide", requestTimeout: 10000, ...options });

async function conversation(options) {
  const r = await connect(options);
  assert.equal(await r.flushall(), "OK");
  assert.equal(await r.ping(), "PONG");
  assert.equal(await r.set("a", "1"), "OK");
  assert.equal(await r.set("a", "2", { conditionalSet: "onlyIfDoesNotExist" }), null);
  assert.equal(await r.set("a", "3", { conditionalSet: "onlyIfEqual", comparisonValue: "1" }), "OK");
  assert.equal(await r.get("a"), "3");
  assert.equal(await r.incrBy("a", 7), 10);
  assert.deepEqual(await r.mget(["a", "none"]), ["10", null]);
  assert.equal(await r.set("t", "x", { expiry: { type: TimeUnit.Seconds, count: 100 } }), "OK");
  assert((await r.ttl("t")) > 90);
  assert.equal(await r.persist("t"), true);
  assert.equal(await r.ttl("t"), -1);
  // What is sent at once goes into one pipeline.
  const many = await Promise.all(Array.from({ length: 300 }, (_, i) => r.set(`p:${i}`, String(i))));
  assert(many.every((reply) => reply === "OK"));
  const pipeline = new Batch(false).get("p:7").incr("n").incr("n");
  assert.deepEqual(await r.exec(pipeline, true), ["7", 1, 2]);
  assert.deepEqual(await r.exec(new Batch(true).incr("n").get("n"), true), [3, "3"]);
  const other = await connect(options);
  assert.equal(await r.watch(["n"]), "OK");
  await other.incr("n");
  assert.equal(await r.exec(new Batch(true).set("n", "0"), true), null);
  let cursor = "0";
  const found = new Set();
  do {
    const [next, keys] = await r.scan(cursor, { match: "p:*", count: 50 });
    keys.forEach((key) => found.add(String(key)));
    cursor = String(next);
  } while (cursor !== "0");
  assert.equal(found.size, 300);
  await assert.rejects(r.hset("h", { f: "v" }), /unknown command/i);
  assert.match(await r.info(), /role:master/);
  assert.equal(await r.customCommand(["FIRN.CAS", "c", "0", "x"]).then((v) => Number(v) > 0), true);
  // A lost connection.
  await other.customCommand(["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
  let value;
  for (let i = 0; i < 100 && value === undefined; i++) {
    try {
      value = await r.get("a");
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  assert.equal(value, "10");
  r.close();
  other.close();
}

(async () => {
  await conversation({ protocol: ProtocolVersion.RESP3 });
  await conversation({ protocol: ProtocolVersion.RESP2 });
  process.exit(0);
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
