// A gRPC client of Node.js whose routes come from the control service: argv[2] is the target.
// Each line of input, a JSON object {calls, metadata, deadline}, is answered by a line
// {answers: {text: count}, errors: {"code details": count}}.
"use strict";
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
require("@grpc/grpc-js-xds").register();

const client = new grpc.Client(process.argv[2], grpc.credentials.createInsecure());

function call(metadata, seconds) {
  return new Promise((done) => {
    const sent = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
    client.makeUnaryRequest(
      "/greeter.Greeter/Hello",
      (text) => Buffer.from(text),
      (bytes) => bytes.toString(),
      "hello",
      sent,
      { deadline: Date.now() + seconds * 1000 },
      (error, answer) => done(error ? { error: `${error.code} ${error.details}` } : { answer }),
    );
  });
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { calls = 1, metadata = {}, deadline = 20 } = JSON.parse(line);
    const result = { answers: {}, errors: {} };
    for (let i = 0; i < calls; i++) {
      const { answer, error } = await call(metadata, deadline);
      const [kind, key] = error === undefined ? ["answers", answer] : ["errors", error];
      result[kind][key] = (result[kind][key] || 0) + 1;
    }
    console.log(JSON.stringify(result));
  }
  client.close();
  process.exit(0);
}
main();
