// graphile-worker with jobs that do nothing: node graphile.mjs (batched | unbatched | one-by-one | by-hundreds | latency) DATABASE AMOUNT
//
// AMOUNT is seconds, for `latency` the number of jobs. What has ended is counted in the database, where an ended job is a
// row that is gone: so only what is durable counts. The options are those of the project's own performance test.

import { fork } from "node:child_process";
import { availableParallelism } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Logger, makeWorkerUtils, run } from "graphile-worker";
import pg from "pg";

const [mode, connectionString, given] = process.argv.slice(2);
const amount = Number(given);
const CONCURRENT = 24;
const WARM_MS = 2000;
const RESOLUTION_MS = 20;
const UNDER_WAY = 10_000;
// As many as the performance test has, if there are cores for them.
const PROCESSES = Math.min(4, availableParallelism());
// For each second: 200,000 in all for half a minute, as the performance test has. They may last for less than that.
const PRELOADED = { batched: 6667, unbatched: 2000 };
const BATCHED = { localQueue: { size: 500, refetchDelay: { durationMs: 10 } }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };

const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

function work(taskList, batched, concurrentJobs = CONCURRENT) {
  const worker = { connectionString, concurrentJobs, maxPoolSize: concurrentJobs + 2, logger, ...(batched ? BATCHED : {}) };
  return run({ preset: { worker }, taskList, noHandleSignals: true });
}

const pool = new pg.Pool({ connectionString, max: CONCURRENT });

async function left() {
  const { rows } = await pool.query("select count(*)::int as n from graphile_worker._private_jobs");
  return rows[0].n;
}

// Processes that work, each of which says now and then how many jobs it has had.
async function workers(batched) {
  const all = [];
  for (let i = 0; i < PROCESSES; i++) {
    const child = fork(import.meta.filename, [batched ? "work-batched" : "work", connectionString, "0"]);
    child.on("message", (had) => { child.had = had; });
    await new Promise((ready) => child.once("message", ready));
    all.push(child);
  }
  return all;
}

async function stopped(children) {
  await Promise.all(children.map((child) => new Promise((done) => child.once("exit", done).send("stop"))));
}

// How many jobs were ended each second, until the time is up or there are no more.
async function rate(ended, exhausted) {
  const [began, before] = [performance.now(), await ended()];
  while (performance.now() - began < amount * 1000 && !exhausted()) await sleep(RESOLUTION_MS);
  const after = await ended();
  return ((after - before) / (performance.now() - began)) * 1000;
}

// The first tenth of the jobs warms what is to be warm.
async function preloaded(utils) {
  const count = PRELOADED[mode] * amount;
  for (let at = 0; at < count; at += 1000) {
    const few = Array.from({ length: Math.min(1000, count - at) }, (_, i) => ({ identifier: "noop", payload: { id: at + i } }));
    await utils.addJobs(few);
  }
  await pool.query("vacuum analyze graphile_worker._private_jobs");
  const children = await workers(mode === "batched");
  const had = () => children.reduce((sum, child) => sum + child.had, 0);
  while (had() < count / 10) await sleep(RESOLUTION_MS);
  const found = await rate(async () => count - (await left()), () => had() >= count);
  await stopped(children);
  return found;
}

// Jobs are added by many clients while others are worked off, and not more of them than there are to be under way.
async function sustained(utils, few) {
  const children = await workers(true);
  const had = () => children.reduce((sum, child) => sum + child.had, 0);
  let [added, going] = [0, true];
  const clients = Array.from({ length: few > 1 ? 8 : 64 }, async () => {
    for (; going; added += few) {
      while (going && added - had() > UNDER_WAY) await sleep(RESOLUTION_MS);
      await (few > 1 ? utils.addJobs(Array(few).fill({ identifier: "noop", payload: {} })) : utils.addJob("noop", {}));
    }
  });
  await sleep(WARM_MS);
  const found = await rate(async () => { const before = added; return before - (await left()); }, () => false);
  going = false;
  await Promise.all(clients);
  await stopped(children);
  return found;
}

// From adding a job to its first line, without batches, whose delays a light load would only wait for.
async function latency(utils) {
  const took = [];
  let begun;
  const runner = await work({ noop: () => { took.push(performance.now() - begun); } }, false, 1);
  await sleep(1000);
  for (let i = 0; i < amount + 20; i++) {
    await sleep(20);
    const expected = took.length + 1;
    begun = performance.now();
    await utils.addJob("noop", {});
    while (took.length < expected) await sleep(1);
  }
  await runner.stop();
  return took.slice(20);
}

if (mode.startsWith("work")) {
  let had = 0;
  const runner = await work({ noop: () => { had++; } }, mode === "work-batched");
  process.once("message", () => runner.stop().then(() => process.exit(0)));
  process.once("disconnect", () => process.exit(1));
  process.send(had);
  setInterval(() => process.send(had), RESOLUTION_MS);
} else {
  const utils = await makeWorkerUtils({ connectionString, maxPoolSize: CONCURRENT, preset: { worker: { logger } } });
  await utils.migrate();
  const rates = { "one-by-one": () => sustained(utils, 1), "by-hundreds": () => sustained(utils, 100) };
  const measured = mode === "latency" ? { ms: await latency(utils) } : { rate: await (rates[mode] ?? preloaded)(utils) };
  console.log(JSON.stringify(measured));
  process.exit(0);
}
