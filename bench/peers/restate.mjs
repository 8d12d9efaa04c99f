// Restate with a handler that does nothing: node restate.mjs serve PORT | rate INGRESS SECONDS | latency URL COUNT
//
// The client writes ready-made requests to sockets and reads lengths only, so that it takes little of the machine.

import http2 from "node:http2";
import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { createEndpointHandler, service } from "@restatedev/restate-sdk";

const [mode, target, given] = process.argv.slice(2);
const amount = Number(given);
const CLIENTS = 200;
const WARM_MS = 3000;

// One connection that is kept alive. `call` resolves when an answer has been read whole.
async function connect(url) {
  const { hostname, port, pathname, host } = new URL(url);
  const request = `POST ${pathname} HTTP/1.1\r\nhost: ${host}\r\ncontent-length: 0\r\n\r\n`;
  const socket = net.connect({ host: hostname, port: Number(port), noDelay: true });
  let [answered, failed, buffer] = [null, null, ""];
  socket.setEncoding("latin1").on("data", (data) => {
    buffer += data;
    const end = buffer.indexOf("\r\n\r\n");
    if (end < 0) return;
    const length = /\r\ncontent-length: *(\d+)/i.exec(buffer.slice(0, end));
    const chunked = !length && /\r\ntransfer-encoding: *chunked/i.test(buffer.slice(0, end));
    if (chunked ? !buffer.endsWith("0\r\n\r\n") : buffer.length < end + 4 + Number(length?.[1] ?? 0)) return;
    const whole = buffer;
    buffer = "";
    /^HTTP\/1\.1 20\d/.test(whole) ? answered() : failed(new Error(whole.slice(0, 500)));
  });
  socket.on("error", (error) => failed?.(error)).on("close", () => failed?.(new Error("the connection was closed")));
  await new Promise((done) => socket.once("connect", done));
  return () => new Promise((resolve, reject) => { [answered, failed] = [resolve, reject]; socket.write(request); });
}

async function rate() {
  const begins = performance.now() + WARM_MS;
  const ends = begins + amount * 1000;
  let count = 0;
  const client = async () => {
    const call = await connect(target);
    for (let now = 0; now < ends; ) {
      await call();
      now = performance.now();
      if (now >= begins && now < ends) count++;
    }
  };
  await Promise.all(Array.from({ length: CLIENTS }, client));
  return count / amount;
}

async function latency() {
  const call = await connect(target);
  const took = [];
  for (let i = 0; i < amount + 20; i++) {
    await sleep(20);
    const begun = performance.now();
    await call();
    took.push(performance.now() - begun);
  }
  return took.slice(20);
}

if (mode === "serve") {
  const services = [service({ name: "bench", handlers: { noop: async () => {} } })];
  http2.createServer(createEndpointHandler({ services })).listen(Number(target), "127.0.0.1");
} else {
  console.log(JSON.stringify(mode === "rate" ? { rate: await rate() } : { ms: await latency() }));
  process.exit(0);
}
