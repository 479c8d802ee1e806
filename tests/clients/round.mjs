// The whole round by chromadb's client for JavaScript, unmodified. node round.mjs HOST PORT, from where it is installed.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [host, port, installed] = process.argv.slice(2);
const { ChromaClient } = await import(pathToFileURL(createRequire(installed).resolve("chromadb")).href);

const token = "ck-javascript";
const client = new ChromaClient({ host, port: Number(port), ssl: false, headers: { "x-chroma-token": token } });
assert.ok((await client.heartbeat()) > 0);
assert.equal(typeof (await client.version()), "string");

const embeddingFunction = {
  name: "fixed",
  generate: async (texts) => texts.map((text) => [text.length, 1, 0]),
};
const collection = await client.createCollection({ name: "javascript", metadata: { made: "here" }, embeddingFunction });
const ids = Array.from({ length: 500 }, (_, n) => `ü${n}`);
await collection.add({
  ids,
  embeddings: ids.map((_, n) => [n, 0.5, -1]),
  documents: ids.map((id) => `text of ${id}`),
  metadatas: ids.map((_, n) => ({ n, even: n % 2 === 0, tags: ["a", "b"] })),
});
assert.equal(await collection.count(), 500);

const one = await collection.get({ ids: ["ü7"], include: ["embeddings", "documents", "metadatas"] });
assert.deepEqual(one.ids, ["ü7"]);
assert.deepEqual(one.embeddings, [[7, 0.5, -1]]);
assert.deepEqual(one.documents, ["text of ü7"]);
assert.deepEqual({ ...one.metadatas[0] }, { n: 7, even: false, tags: ["a", "b"] });
assert.equal((await collection.get({ where: { n: { $lt: 10 } } })).ids.length, 10);

const near = await collection.query({ queryEmbeddings: [[100.2, 0.5, -1]], nResults: 3 });
assert.deepEqual(near.ids, [["ü100", "ü101", "ü99"]]);
const byText = await collection.query({ queryTexts: ["x".repeat(20)], nResults: 1, whereDocument: { $contains: "ü2" } });
assert.equal(byText.ids[0].length, 1);

await collection.update({ ids: ["ü7"], documents: ["changed"], embeddings: [[0, 0, 0]] });
assert.deepEqual((await collection.get({ ids: ["ü7"] })).documents, ["changed"]);
await collection.upsert({ ids: ["ü7", "new"], embeddings: [[1, 1, 1], [2, 2, 2]], documents: ["again", "new"] });
await collection.delete({ ids: ["ü8"] });
await collection.delete({ where: { n: { $gte: 490 } } });
assert.equal(await collection.count(), 490);
assert.equal((await collection.peek({ limit: 5 })).ids.length, 5);

await collection.modify({ name: "renamed", metadata: { made: "again" } });
const again = await client.getCollection({ name: "renamed", embeddingFunction });
assert.equal(again.id, collection.id);
assert.deepEqual((await client.listCollections()).map((c) => c.name), ["renamed"]);
assert.equal(await client.countCollections(), 1);
await assert.rejects(client.getCollection({ name: "nothing" }), /not.*found|does not exist|could not be found/i);
await assert.rejects(client.createCollection({ name: "renamed", embeddingFunction }), /already exists/i);
await client.deleteCollection({ name: "renamed" });
assert.equal(await client.countCollections(), 0);
console.log("done");
