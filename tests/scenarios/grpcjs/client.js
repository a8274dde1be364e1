// A gRPC client of Node.js whose routes come from the control service: argv[2] is the target.
// Each line of input, a JSON object {calls, metadata, deadline, method}, is answered by a line
// {answers: {text: count}, errors: {"code details": count}}.
"use strict";
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const xds = require("@grpc/grpc-js-xds");
xds.register();

// As the configuration says: mutual TLS, or plain text.
const credentials = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
const client = new grpc.Client(process.argv[2], credentials);

function call(method, metadata, seconds) {
  return new Promise((done) => {
    const sent = new grpc.Metadata();
    for (const [key, value] of Object.entries(metadata)) sent.set(key, value);
    client.makeUnaryRequest(
      `/greeter.Greeter/${method}`,
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
    const { calls = 1, metadata = {}, deadline = 20, method = "Hello" } = JSON.parse(line);
    const result = { answers: {}, errors: {} };
    for (let i = 0; i < calls; i++) {
      const { answer, error } = await call(method, metadata, deadline);
      const [kind, key] = error === undefined ? ["answers", answer] : ["errors", error];
      result[kind][key] = (result[kind][key] || 0) + 1;
    }
    console.log(JSON.stringify(result));
  }
  client.close();
  process.exit(0);
}
main();
