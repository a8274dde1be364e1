// A gRPC client of Node.js whose routes come from the control service: argv[2] is the target, if lines name none.
// Each line of input, a JSON object {target, calls, apart, metadata, deadline, method, message}, is answered by
// a line {answers: {text: count}, errors: {"CODE details": count}, seconds: [of each call]}. `method` is one of
// greeter.Greeter, or a whole path; with `apart` the calls do not wait for one another, but begin so many seconds apart.
"use strict";
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const xds = require("@grpc/grpc-js-xds");
xds.register();

// As the configuration says: mutual TLS, or plain text.
const credentials = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
const clients = new Map();

function sleep(seconds) {
  return seconds ? new Promise((done) => setTimeout(done, seconds * 1000)) : Promise.resolve();
}

function opened(target) {
  if (!clients.has(target)) clients.set(target, new grpc.Client(target, credentials));
  return clients.get(target);
}

function call(client, path, message, metadata, seconds) {
  return new Promise((done) => {
    const sent = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
    const begun = performance.now();
    client.makeUnaryRequest(
      path,
      (text) => Buffer.from(text),
      (bytes) => bytes.toString(),
      message,
      sent,
      { deadline: Date.now() + seconds * 1000 },
      (error, answer) => {
        const took = (performance.now() - begun) / 1000;
        done(error ? { error: `${grpc.status[error.code]} ${error.details}`, took } : { answer, took });
      },
    );
  });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    const { target = process.argv[2], calls = 1, apart, metadata = {} } = asked;
    const { deadline = 20, method = "Hello", message = "hello" } = asked;
    const path = method.startsWith("/") ? method : `/greeter.Greeter/${method}`;
    const one = () => call(opened(target), path, message, metadata, deadline);
    const ended = [];
    if (apart !== undefined)
      ended.push(...(await Promise.all(Array.from({ length: calls }, (_, i) => sleep(i * apart).then(one)))));
    while (ended.length < calls) ended.push(await one());
    const result = { answers: {}, errors: {}, seconds: ended.map(({ took }) => took) };
    for (const { answer, error } of ended) {
      const [kind, key] = error === undefined ? ["answers", answer] : ["errors", error];
      result[kind][key] = (result[kind][key] || 0) + 1;
    }
    console.log(JSON.stringify(result));
  }
  for (const client of clients.values()) client.close();
  process.exit(0);
}
main();
